package main

// The container side: PID 1 of fresh namespaces builds its root and becomes
// the container's command.

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func must(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "proccri: %s: %v\n", what, err)
		os.Exit(128)
	}
}

// inside is path below root with its symbolic links resolved there: /var/run
// leads to root/run, not to the host's /run.
func inside(root, path string) string {
	at := root
	rest := strings.Split(filepath.Clean("/"+path), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" {
			continue
		}
		if name == ".." {
			if at != root {
				at = filepath.Dir(at)
			}
			continue
		}
		next := filepath.Join(at, name)
		target, err := os.Readlink(next)
		if err != nil || links > 40 {
			at = next
			continue
		}
		links++
		if filepath.IsAbs(target) {
			at = root
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at
}

// child runs as PID 1 of fresh namespaces, builds the root, and becomes argv.
func child() {
	runtime.LockOSThread()
	var sp spec
	must(json.Unmarshal([]byte(os.Getenv("PROCCRI_SPEC")), &sp), "spec")
	if sp.Netns != "" {
		f, err := os.Open(sp.Netns)
		must(err, "open netns")
		must(unix.Setns(int(f.Fd()), unix.CLONE_NEWNET), "setns")
		f.Close()
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), "private")
	root := filepath.Join(sp.Root, "root")
	must(os.MkdirAll(sp.Root, 0o755), "scratch")
	must(unix.Mount("scratch", sp.Root, "tmpfs", 0, "mode=755"), "tmpfs")
	for _, d := range []string{"up", "work", "root"} {
		must(os.Mkdir(filepath.Join(sp.Root, d), 0o755), d)
	}
	opts := fmt.Sprintf("lowerdir=/,upperdir=%s/up,workdir=%s/work", sp.Root, sp.Root)
	must(unix.Mount("overlay", root, "overlay", 0, opts), "overlay")
	must(unix.Mount("proc", root+"/proc", "proc", 0, ""), "proc")
	must(unix.Mount("/dev", root+"/dev", "", unix.MS_BIND|unix.MS_REC, ""), "dev")
	must(unix.Mount("shm", root+"/dev/shm", "tmpfs", 0, "size=64m"), "shm") // as container engines do
	must(unix.Mount("/sys", root+"/sys", "", unix.MS_BIND|unix.MS_REC, ""), "sys")
	for _, m := range sp.Mounts {
		to := inside(root, m.ContainerPath)
		st, err := os.Stat(m.HostPath)
		must(err, "mount source")
		if st.IsDir() {
			must(os.MkdirAll(to, 0o755), "mount point")
		} else if m.ContainerPath == "/dev/termination-log" {
			continue // /dev is the host's; the message file is not offered
		} else {
			must(os.MkdirAll(filepath.Dir(to), 0o755), "mount point")
			f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o644)
			must(err, "mount point")
			f.Close()
		}
		must(unix.Mount(m.HostPath, to, "", unix.MS_BIND|unix.MS_REC, ""), "bind "+m.ContainerPath)
		if m.Readonly {
			must(unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""), "read-only "+m.ContainerPath)
		}
	}
	must(unix.Chdir(root), "chdir")
	must(unix.PivotRoot(".", "."), "pivot_root")
	must(unix.Unmount(".", unix.MNT_DETACH), "detach")
	if sp.Dir == "" {
		sp.Dir = "/"
	}
	must(unix.Chdir(sp.Dir), "workingDir")
	if sp.Hostname != "" {
		must(unix.Sethostname([]byte(sp.Hostname)), "hostname")
	}
	if sp.GID != 0 {
		must(syscall.Setgid(int(sp.GID)), "setgid")
	}
	if sp.UID != 0 {
		must(syscall.Setuid(int(sp.UID)), "setuid")
	}
	// A change of user drops the parent-death signal; without it a killed proccri would leak containers.
	must(unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0), "pdeathsig")
	os.Unsetenv("PROCCRI_SPEC")
	os.Setenv("PATH", strings.TrimPrefix(sp.Env[0], "PATH="))
	bin, err := exec.LookPath(sp.Argv[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "proccri:", err)
		os.Exit(127)
	}
	must(syscall.Exec(bin, sp.Argv, os.Environ()), "exec")
}
