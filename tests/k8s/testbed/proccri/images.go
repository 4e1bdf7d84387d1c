package main

// Images: any name exists and is empty.

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func image(name string) *cri.Image {
	return &cri.Image{Id: name, RepoTags: []string{name}, Size: 1, Spec: &cri.ImageSpec{Image: name}}
}

func (s *server) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var r cri.ListImagesResponse
	for name := range s.images {
		r.Images = append(r.Images, image(name))
	}
	return &r, nil
}
func (s *server) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[r.Image.Image] = true
	return &cri.ImageStatusResponse{Image: image(r.Image.Image)}, nil
}
func (s *server) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[r.Image.Image] = true
	return &cri.PullImageResponse{ImageRef: r.Image.Image}, nil
}
func (s *server) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	return &cri.RemoveImageResponse{}, nil
}
func (s *server) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	fs := []*cri.FilesystemUsage{{Timestamp: now(), FsId: &cri.FilesystemIdentifier{Mountpoint: s.dir},
		UsedBytes: &cri.UInt64Value{Value: 1}, InodesUsed: &cri.UInt64Value{Value: 1}}}
	return &cri.ImageFsInfoResponse{ImageFilesystems: fs, ContainerFilesystems: fs}, nil
}
