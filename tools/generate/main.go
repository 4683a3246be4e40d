// Command generate makes the Go code of proto/ with pinned plugins and without
// a protoc: it compiles the .proto files itself and runs protoc-gen-go and
// protoc-gen-go-grpc of this module's go.mod on them.
//
// Run it in its own folder: GOWORK=off go run . ../../proto
//
// With -released it makes nothing, and fails unless all that has changed since the
// descriptors in a file were made are additions. With -release it makes that file.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	released := flag.String("released", "", "compare with the descriptors in this `FILE`")
	release := flag.String("release", "", "write the descriptors to this `FILE`")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: generate [-released FILE | -release FILE] PROTO_DIR")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *released, *release); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(dir, released, release string) error {
	names, all, err := compile(dir)
	if err != nil {
		return err
	}
	switch {
	case release != "":
		return writeReleased(release, all)
	case released != "":
		return compareReleased(released, all)
	}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		if err := generate(plugin, dir, names, all); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

// compile returns the names of the .proto files in dir, and their descriptors after
// those that they import.
func compile(dir string) ([]string, []*descriptorpb.FileDescriptorProto, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "sluice", "v1", "*.proto"))
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, p := range paths {
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, filepath.ToSlash(rel))
	}
	sort.Strings(names)
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return nil, nil, fmt.Errorf("compile: %w", err)
	}
	var all []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		all = append(all, protodesc.ToFileDescriptorProto(f))
	}
	for _, f := range files {
		add(f)
	}
	return names, all, nil
}

func generate(plugin, dir string, names []string, files []*descriptorpb.FileDescriptorProto) error {
	parameter := "paths=source_relative"
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: names, Parameter: &parameter, ProtoFile: files,
		CompilerVersion: &pluginpb.Version{Major: proto.Int32(5), Minor: proto.Int32(29), Patch: proto.Int32(0)},
	})
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "tool", plugin)
	cmd.Stdin = bytes.NewReader(request)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		if err := os.WriteFile(filepath.Join(dir, f.GetName()), []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
