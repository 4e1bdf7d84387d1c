// Command proccri is a container runtime for tests. It speaks the kubelet's
// Container Runtime Interface, but a "container" is a local process tree: the
// host's root directory under a throw-away overlay, with its own mount, pid,
// ipc and uts namespaces, inside the network namespace of its pod. Images are
// never pulled; -path is put in front of PATH, so `cox` in a manifest means
// the binary just built. Needs root and a host whose root can be an overlayfs
// lower directory. Never use it outside tests: it isolates nothing.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// spec is all that the child needs to become the container.
type spec struct {
	Root     string // scratch directory for the overlay
	Netns    string // "" keeps the host's network
	Hostname string
	Dir      string
	UID      int64
	GID      int64
	Argv     []string
	Env      []string
	Mounts   []*cri.Mount
}

type sandbox struct {
	id      string
	config  *cri.PodSandboxConfig
	created int64
	ready   bool
	ip      string
	pause   *exec.Cmd // holds the network namespace open
	netns   string
	resolv  string // its resolv.conf, or ""
}

type container struct {
	id, sandbox string
	config      *cri.ContainerConfig
	logPath     string
	created     int64
	started     int64
	finished    int64
	exit        int32
	state       cri.ContainerState
	proc        *exec.Cmd
	done        chan struct{}
}

type server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	dir, path, libs string
	bridge          string
	subnet          string // first three octets

	mu         sync.Mutex
	n          int
	sandboxes  map[string]*sandbox
	containers map[string]*container
	images     map[string]bool
}

func now() int64 { return time.Now().UnixNano() }

func (s *server) next(kind string) string {
	s.n++
	return fmt.Sprintf("%s%06d", kind, s.n)
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// ---- runtime ----

func (s *server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "proccri", RuntimeVersion: "0.1.0", RuntimeApiVersion: "v1"}, nil
}

func (s *server) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	ok := func(t string) *cri.RuntimeCondition { return &cri.RuntimeCondition{Type: t, Status: true} }
	return &cri.StatusResponse{
		Status:          &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{ok("RuntimeReady"), ok("NetworkReady")}},
		RuntimeHandlers: []*cri.RuntimeHandler{{Name: ""}},
	}, nil
}

func (s *server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: cri.CgroupDriver_CGROUPFS}}, nil
}

func (s *server) UpdateRuntimeConfig(context.Context, *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	return &cri.UpdateRuntimeConfigResponse{}, nil
}

func (s *server) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := &sandbox{id: s.next("s"), config: r.Config, created: now(), ready: true}
	hostNet := r.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE
	if !hostNet {
		sb.ip = fmt.Sprintf("%s.%d", s.subnet, 2+s.n%250)
		sb.pause = exec.Command("sleep", "infinity")
		sb.pause.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := sb.pause.Start(); err != nil {
			return nil, err
		}
		go sb.pause.Wait()
		pid := fmt.Sprint(sb.pause.Process.Pid)
		sb.netns = "/proc/" + pid + "/ns/net"
		veth := fmt.Sprintf("v%s%d", strings.ReplaceAll(s.subnet[strings.LastIndex(s.subnet, ".")+1:], ".", ""), s.n)
		in := func(a ...string) error {
			out, err := exec.Command("nsenter", append([]string{"--net=" + sb.netns, "ip"}, a...)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%v: %w: %s", a, err, out)
			}
			return nil
		}
		gw := strings.Join(strings.Split(s.subnet, ".")[:2], ".") + ".0.1"
		if err := errors.Join(
			ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", pid),
			ip("link", "set", veth, "master", s.bridge, "alias", r.Config.Metadata.Namespace+"/"+r.Config.Metadata.Name, "up"),
			in("link", "set", "lo", "up"),
			in("addr", "add", sb.ip+"/16", "dev", "eth0"),
			in("link", "set", "eth0", "up"),
			in("route", "add", "default", "via", gw),
		); err != nil {
			sb.pause.Process.Kill()
			return nil, err
		}
	}
	s.sandboxes[sb.id] = sb
	os.MkdirAll(r.Config.LogDirectory, 0o755)
	if d := r.Config.DnsConfig; d != nil && len(d.Servers) > 0 {
		text := "nameserver " + strings.Join(d.Servers, "\nnameserver ") + "\nsearch " + strings.Join(d.Searches, " ") +
			"\noptions " + strings.Join(d.Options, " ") + "\n"
		sb.resolv = filepath.Join(s.dir, sb.id+".resolv.conf")
		if err := os.WriteFile(sb.resolv, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: sb.id}, nil
}

func (s *server) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	s.mu.Lock()
	sb := s.sandboxes[r.PodSandboxId]
	var live []*container
	for _, c := range s.containers {
		if c.sandbox == r.PodSandboxId && c.state == cri.ContainerState_CONTAINER_RUNNING {
			live = append(live, c)
		}
	}
	s.mu.Unlock()
	for _, c := range live {
		c.proc.Process.Kill()
		<-c.done
	}
	if sb != nil {
		s.mu.Lock()
		if sb.ready && sb.pause != nil {
			sb.pause.Process.Kill()
		}
		sb.ready = false
		s.mu.Unlock()
	}
	return &cri.StopPodSandboxResponse{}, nil
}

func (s *server) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	s.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId})
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.containers {
		if c.sandbox == r.PodSandboxId {
			delete(s.containers, id)
		}
	}
	delete(s.sandboxes, r.PodSandboxId)
	return &cri.RemovePodSandboxResponse{}, nil
}

func sandboxState(ready bool) cri.PodSandboxState {
	if ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func (s *server) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.sandboxes[r.PodSandboxId]
	if sb == nil {
		return nil, fmt.Errorf("no sandbox %s", r.PodSandboxId)
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: sb.id, Metadata: sb.config.Metadata, State: sandboxState(sb.ready), CreatedAt: sb.created,
		Network: &cri.PodSandboxNetworkStatus{Ip: sb.ip}, Labels: sb.config.Labels, Annotations: sb.config.Annotations,
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: sb.config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
	}}, nil
}

func matches(labels, want map[string]string) bool {
	for k, v := range want {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (s *server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []*cri.PodSandbox
	f := r.GetFilter()
	for _, sb := range s.sandboxes {
		if f.GetId() != "" && f.Id != sb.id || f.GetState() != nil && f.State.State != sandboxState(sb.ready) || !matches(sb.config.Labels, f.GetLabelSelector()) {
			continue
		}
		items = append(items, &cri.PodSandbox{Id: sb.id, Metadata: sb.config.Metadata, State: sandboxState(sb.ready),
			CreatedAt: sb.created, Labels: sb.config.Labels, Annotations: sb.config.Annotations})
	}
	sort.Slice(items, func(i, j int) bool { return items[i].CreatedAt > items[j].CreatedAt })
	return &cri.ListPodSandboxResponse{Items: items}, nil
}

func (s *server) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.sandboxes[r.PodSandboxId]
	if sb == nil {
		return nil, fmt.Errorf("no sandbox %s", r.PodSandboxId)
	}
	c := &container{id: s.next("c"), sandbox: sb.id, config: r.Config, created: now(),
		logPath: filepath.Join(sb.config.LogDirectory, r.Config.LogPath), done: make(chan struct{})}
	s.containers[c.id] = c
	return &cri.CreateContainerResponse{ContainerId: c.id}, nil
}

func (s *server) spec(c *container, argv []string, sub string) *spec {
	sb := s.sandboxes[c.sandbox]
	env := []string{"PATH=" + s.path + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root"}
	if s.libs != "" {
		env = append(env, "LD_LIBRARY_PATH="+s.libs)
	}
	for _, kv := range c.config.Envs {
		env = append(env, kv.Key+"="+string(kv.Value))
	}
	sc := c.config.GetLinux().GetSecurityContext()
	sp := &spec{Root: filepath.Join(s.dir, c.id+sub), Netns: sb.netns, Hostname: sb.config.Hostname, Dir: c.config.WorkingDir,
		Argv: argv, Env: env, Mounts: c.config.Mounts}
	if sb.resolv != "" {
		sp.Mounts = append([]*cri.Mount{{HostPath: sb.resolv, ContainerPath: "/etc/resolv.conf"}}, sp.Mounts...)
	}
	sp.UID, sp.GID = sc.GetRunAsUser().GetValue(), sc.GetRunAsGroup().GetValue()
	return sp
}

func command(sp *spec) *exec.Cmd {
	text, _ := json.Marshal(sp)
	cmd := exec.Command("/proc/self/exe", "child")
	cmd.Env = append(sp.Env, "PROCCRI_SPEC="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	return cmd
}

func (s *server) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[r.ContainerId]
	if c == nil {
		return nil, fmt.Errorf("no container %s", r.ContainerId)
	}
	argv := append(append([]string{}, c.config.Command...), c.config.Args...)
	if len(argv) == 0 {
		return nil, errors.New("proccri has no images, so a container needs a command")
	}
	os.MkdirAll(filepath.Dir(c.logPath), 0o755)
	logFile, err := os.OpenFile(c.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	c.proc = command(s.spec(c, argv, ""))
	out, outW, _ := os.Pipe()
	errR, errW, _ := os.Pipe()
	c.proc.Stdout, c.proc.Stderr = outW, errW
	err = c.proc.Start()
	outW.Close()
	errW.Close()
	if err != nil {
		logFile.Close()
		return nil, err
	}
	c.started, c.state = now(), cri.ContainerState_CONTAINER_RUNNING
	var wg sync.WaitGroup
	var logMu sync.Mutex
	for _, p := range []struct {
		name string
		r    *os.File
	}{{"stdout", out}, {"stderr", errR}} {
		wg.Add(1)
		go func() { // the kubelet's log format: time stream F line
			defer wg.Done()
			br := bufio.NewReaderSize(p.r, 1<<16)
			for {
				line, err := br.ReadString('\n')
				if line != "" {
					logMu.Lock()
					fmt.Fprintf(logFile, "%s %s F %s\n", time.Now().Format(time.RFC3339Nano), p.name, strings.TrimSuffix(line, "\n"))
					logMu.Unlock()
				}
				if err != nil {
					return
				}
			}
		}()
	}
	go func() {
		c.proc.Wait()
		wg.Wait()
		logFile.Close()
		ws := c.proc.ProcessState.Sys().(syscall.WaitStatus)
		s.mu.Lock()
		c.exit = int32(ws.ExitStatus())
		if ws.Signaled() {
			c.exit = 128 + int32(ws.Signal())
		}
		c.finished, c.state = now(), cri.ContainerState_CONTAINER_EXITED
		s.mu.Unlock()
		os.RemoveAll(filepath.Join(s.dir, c.id))
		close(c.done)
	}()
	return &cri.StartContainerResponse{}, nil
}

func (s *server) StopContainer(_ context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	s.mu.Lock()
	c := s.containers[r.ContainerId]
	running := c != nil && c.state == cri.ContainerState_CONTAINER_RUNNING
	s.mu.Unlock()
	if !running {
		return &cri.StopContainerResponse{}, nil
	}
	c.proc.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(time.Duration(r.Timeout) * time.Second):
		c.proc.Process.Kill()
		<-c.done
	}
	return &cri.StopContainerResponse{}, nil
}

func (s *server) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: r.ContainerId})
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[r.ContainerId]; c != nil {
		os.Remove(c.logPath)
	}
	delete(s.containers, r.ContainerId)
	return &cri.RemoveContainerResponse{}, nil
}

func (s *server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []*cri.Container
	f := r.GetFilter()
	for _, c := range s.containers {
		if f.GetId() != "" && f.Id != c.id || f.GetPodSandboxId() != "" && f.PodSandboxId != c.sandbox ||
			f.GetState() != nil && f.State.State != c.state || !matches(c.config.Labels, f.GetLabelSelector()) {
			continue
		}
		items = append(items, &cri.Container{Id: c.id, PodSandboxId: c.sandbox, Metadata: c.config.Metadata, Image: c.config.Image,
			ImageRef: c.config.Image.Image, ImageId: c.config.Image.Image, State: c.state, CreatedAt: c.created,
			Labels: c.config.Labels, Annotations: c.config.Annotations})
	}
	sort.Slice(items, func(i, j int) bool { return items[i].CreatedAt > items[j].CreatedAt })
	return &cri.ListContainersResponse{Containers: items}, nil
}

func (s *server) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[r.ContainerId]
	if c == nil {
		return nil, fmt.Errorf("no container %s", r.ContainerId)
	}
	reason := ""
	if c.state == cri.ContainerState_CONTAINER_EXITED {
		if reason = "Completed"; c.exit != 0 {
			reason = "Error"
		}
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: c.id, Metadata: c.config.Metadata, State: c.state,
		CreatedAt: c.created, StartedAt: c.started, FinishedAt: c.finished, ExitCode: c.exit, Image: c.config.Image,
		ImageRef: c.config.Image.Image, ImageId: c.config.Image.Image, Reason: reason, Labels: c.config.Labels,
		Annotations: c.config.Annotations, Mounts: c.config.Mounts, LogPath: c.logPath}}, nil
}

func (s *server) UpdateContainerResources(context.Context, *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	return &cri.UpdateContainerResourcesResponse{}, nil
}

func (s *server) ReopenContainerLog(context.Context, *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return &cri.ReopenContainerLogResponse{}, nil
}

// ExecSync serves exec probes and preStop hooks inside the container's namespaces.
func (s *server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	s.mu.Lock()
	c := s.containers[r.ContainerId]
	if c == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("no container %s", r.ContainerId)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", fmt.Sprint(c.proc.Process.Pid), "--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--"}, r.Cmd...)...)
	cmd.Env = s.spec(c, nil, "").Env
	s.mu.Unlock()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if r.Timeout > 0 {
		t := time.AfterFunc(time.Duration(r.Timeout)*time.Second, func() { cmd.Process.Kill() })
		defer t.Stop()
	}
	err := cmd.Run()
	var code int32
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		code = int32(ee.ExitCode())
	} else if err != nil {
		return nil, err
	}
	return &cri.ExecSyncResponse{Stdout: out.Bytes(), Stderr: errOut.Bytes(), ExitCode: code}, nil
}

func (s *server) ContainerStats(context.Context, *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	return &cri.ContainerStatsResponse{}, nil
}
func (s *server) ListContainerStats(context.Context, *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	return &cri.ListContainerStatsResponse{}, nil
}
func (s *server) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	return &cri.ListPodSandboxStatsResponse{}, nil
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child()
	}
	s := &server{sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, images: map[string]bool{}}
	sock := flag.String("sock", "/run/proccri.sock", "unix socket to serve")
	flag.StringVar(&s.dir, "dir", "/run/proccri", "scratch directory")
	flag.StringVar(&s.path, "path", "/usr/local/bin", "directory put in front of PATH")
	flag.StringVar(&s.libs, "libs", "", "LD_LIBRARY_PATH of every container")
	flag.StringVar(&s.bridge, "bridge", "pods0", "bridge that joins the pods")
	flag.StringVar(&s.subnet, "subnet", "10.244.1", "first three octets of pod addresses")
	flag.Parse()
	log.SetFlags(log.Ltime)
	os.Remove(*sock)
	must(os.MkdirAll(s.dir, 0o755), "dir")
	l, err := net.Listen("unix", *sock)
	must(err, "listen")
	trace := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		r, err := h(ctx, req)
		if err != nil {
			log.Printf("%s: %v", info.FullMethod, err)
		}
		return r, err
	}
	g := grpc.NewServer(grpc.UnaryInterceptor(trace))
	cri.RegisterRuntimeServiceServer(g, s)
	cri.RegisterImageServiceServer(g, s)
	if err := g.Serve(l); err != nil && !errors.Is(err, io.EOF) {
		log.Fatal(err)
	}
}
