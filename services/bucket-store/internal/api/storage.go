package api

import (
	"context"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

type storage struct {
	pb.UnimplementedStorageServer
	*API
}

// Backup is a backup that was made.
type Backup struct {
	Path  string
	Bytes int64
	Files int
}

// backupName keeps a name within the folder of the backups.
var backupName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Backup makes a backup, one at a time.
func (s *storage) Backup(_ context.Context, m *pb.BackupRequest) (*pb.BackupReply, error) {
	if s.MakeBackup == nil {
		return nil, errs.New(errs.S2001, "this storage is backed up with the tools of its database")
	}
	name := m.GetName()
	if name == "" {
		name = s.Now().UTC().Format("20060102T150405Z")
	}
	if !backupName.MatchString(name) {
		return nil, errs.New(errs.S2001, "%q is no name for a backup: it may have letters, digits, and - _ . behind the first one", name)
	}
	if !s.backingUp.TryLock() {
		return nil, status.Error(codes.Aborted, "another backup is being made")
	}
	defer s.backingUp.Unlock()
	start := s.Now()
	made, err := s.MakeBackup(name)
	if err != nil {
		s.Log.Error("backup failed", "name", name, "error", err)
		return nil, mapped(err)
	}
	s.Log.Info("backup made", "path", made.Path, "bytes", made.Bytes, "took", s.Now().Sub(start).Round(time.Millisecond))
	return &pb.BackupReply{Path: made.Path, Bytes: uint64(made.Bytes), Files: uint32(made.Files)}, nil
}
