package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
)

// copyRows are rows in the form of COPY BINARY: as fast as a table is filled.
type copyRows struct{ buf []byte }

// copies are those that nobody fills; each has the memory of its last commit.
var copies = sync.Pool{New: func() any { return &copyRows{} }}

// maxCopy bounds the memory that is kept for the next commit.
const maxCopy = 32 << 20

func (c *copyRows) free() {
	if cap(c.buf) <= maxCopy {
		copies.Put(c)
	}
}

func (c *copyRows) begin() {
	c.buf = append(c.buf[:0], "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
}

func (c *copyRows) row(columns uint16) { c.buf = binary.BigEndian.AppendUint16(c.buf, columns) }

func (c *copyRows) size(n int) { c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(n)) }

func (c *copyRows) null() { c.size(-1) }

func (c *copyRows) int2(n int16) {
	c.size(2)
	c.buf = binary.BigEndian.AppendUint16(c.buf, uint16(n))
}

func (c *copyRows) int4(n int32) {
	c.size(4)
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(n))
}

func (c *copyRows) int8(n int64) {
	c.size(8)
	c.buf = binary.BigEndian.AppendUint64(c.buf, uint64(n))
}

func (c *copyRows) uuid(u [16]byte) {
	c.size(16)
	c.buf = append(c.buf, u[:]...)
}

func (c *copyRows) bytes(s string) {
	c.size(len(s))
	c.buf = append(c.buf, s...)
}

func (c *copyRows) name(op *model.Op) {
	at := len(c.buf)
	c.size(0)
	c.buf = appendName(c.buf, op)
	binary.BigEndian.PutUint32(c.buf[at:], uint32(len(c.buf)-at-4))
}

func (c *copyRows) copy(ctx context.Context, conn *pgx.Conn, sql string) error {
	c.buf = append(c.buf, 0xff, 0xff)
	_, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(c.buf), sql)
	return err
}
