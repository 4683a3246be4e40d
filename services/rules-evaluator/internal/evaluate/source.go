package evaluate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
)

var (
	errNoIdentity    = errors.New("the row has no replica identity")
	errUnknownBefore = errors.New("the source did not send unchanged values, and the row's previous version is not known")
)

// TooLargeError is a row beyond MaxRow (S1002).
type TooLargeError struct{ Size int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the row has %d bytes, more than %d: it is not synced", e.Size, MaxRow)
}

// nameSize is the size of a column's name in columnNames.
const nameSize = 4

// columnNames is a hash of each column's name, in order. It is stored with a
// row, so that its values are found again after columns were added or dropped.
func columnNames(t *model.SourceTable) string {
	b := make([]byte, 0, nameSize*len(t.Columns))
	for i := range t.Columns {
		h := fnv.New32a()
		h.Write([]byte(t.Columns[i].Name))
		b = binary.LittleEndian.AppendUint32(b, h.Sum32())
	}
	return string(b)
}

// appendSource appends a row as it is stored: row form, with columnNames as one
// more value. columns has a name for each value of row, or the row is stored
// with as many names as it has values.
func appendSource(dst []byte, columns string, row []model.Value) []byte {
	n := min(len(row), len(columns)/nameSize)
	stored := make([]model.Value, 0, 64)
	stored = append(stored, row[:n]...)
	stored = append(stored, model.BlobValue(columns[:n*nameSize]))
	return wire.AppendRow(dst, stored)
}

// findColumn returns where in former the column j of columns is, or -1.
func findColumn(former version, columns string, j int) int {
	name := columns[j*nameSize : (j+1)*nameSize]
	at := func(k int) bool {
		return k < len(former.row) && former.columns[k*nameSize:(k+1)*nameSize] == name
	}
	if at(j) {
		return j
	}
	for k := range former.row {
		if at(k) {
			return k
		}
	}
	return -1
}
