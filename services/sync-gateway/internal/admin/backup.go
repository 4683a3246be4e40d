package admin

import (
	"context"
	"fmt"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// backup makes a backup of the storage where bucket-store runs.
func (a *API) backup(c *call) (any, error) {
	var b struct {
		Name string `json:"name"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	a.audit(c, "backup", "name", b.Name)
	ctx, cancel := context.WithTimeout(c.ctx, backupTimeout)
	defer cancel()
	r, err := pb.NewStorageClient(a.o.Store).Backup(ctx, &pb.BackupRequest{Name: b.Name})
	if err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	return map[string]any{"path": r.GetPath(), "bytes": r.GetBytes(), "files": r.GetFiles()}, nil
}
