package main

import (
	"fmt"
	"os"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// bare returns descriptors as two versions of them are compared: without comments
// and places.
func bare(files []*descriptorpb.FileDescriptorProto) *descriptorpb.FileDescriptorSet {
	s := &descriptorpb.FileDescriptorSet{}
	for _, f := range files {
		f = proto.CloneOf(f)
		f.SourceCodeInfo = nil
		s.File = append(s.File, f)
	}
	return s
}

func writeReleased(file string, files []*descriptorpb.FileDescriptorProto) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare(files))
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

// compareReleased returns an error if there is anything but additions: those break
// nobody, and of other changes a judge must say whether they do.
func compareReleased(file string, files []*descriptorpb.FileDescriptorProto) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var released descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &released); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return within(released.ProtoReflect(), bare(files).ProtoReflect(), "")
}

// within returns an error unless all that the descriptor old says, now says too;
// now may have more entries in its lists, and says nothing else that old does not.
func within(old, now protoreflect.Message, path string) error {
	fields := old.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Message() != nil:
			if err := entries(old.Get(f).List(), now.Get(f).List(), path); err != nil {
				return err
			}
		case f.IsList(): // of names or numbers
			there := now.Get(f).List()
			for j := range old.Get(f).List().Len() {
				v := old.Get(f).List().Get(j)
				if !slices.ContainsFunc(all(there), v.Equal) {
					return fmt.Errorf("%s: %s has lost %v", path, f.Name(), v)
				}
			}
		case old.Has(f) != now.Has(f) || !old.Get(f).Equal(now.Get(f)):
			return fmt.Errorf("%s: %s was %v and is %v", path, f.Name(), old.Get(f), now.Get(f))
		}
	}
	return nil
}

// entries does the same for lists of descriptors, which are found by their names,
// or are the same if they have none.
func entries(old, now protoreflect.List, path string) error {
	there := all(now)
	for i := range old.Len() {
		m := old.Get(i).Message()
		name := m.Descriptor().Fields().ByName("name")
		if name == nil {
			if !slices.ContainsFunc(there, old.Get(i).Equal) {
				return fmt.Errorf("%s has lost %v", path, m)
			}
			continue
		}
		at := path + "/" + m.Get(name).String()
		j := slices.IndexFunc(there, func(v protoreflect.Value) bool { return v.Message().Get(name).Equal(m.Get(name)) })
		if j < 0 {
			return fmt.Errorf("%s is not there any more", at)
		}
		if err := within(m, there[j].Message(), at); err != nil {
			return err
		}
	}
	return nil
}

func all(l protoreflect.List) []protoreflect.Value {
	var vs []protoreflect.Value
	for i := range l.Len() {
		vs = append(vs, l.Get(i))
	}
	return vs
}
