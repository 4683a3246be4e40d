package wire

import (
	"encoding/binary"
	"iter"

	"github.com/sluicesync/sluice/libs/model"
)

// AppendOp appends the op block form of op. PUT and REMOVE have key, type and
// id, PUT has data too (empty if left out), MOVE and CLEAR have a target. Op
// blocks may be joined.
func AppendOp(dst []byte, op *model.Op) []byte {
	dst = append(dst, byte(op.Kind))
	dst = binary.AppendUvarint(dst, uint64(op.ID))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(op.Checksum))
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		dst = append(dst, op.Key.Table[:]...)
		dst = append(dst, op.Key.Row[:]...)
		dst = appendText(dst, op.ObjectType)
		dst = appendText(dst, op.ObjectID)
		if op.Kind == model.OpPut {
			dst = appendText(dst, op.Data)
		}
	default:
		dst = binary.AppendUvarint(dst, uint64(op.Target))
	}
	return dst
}

// Ops yields the ops of a block, whose memory they share. An error comes last.
func Ops(block []byte) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		r := reader{s: alias(block)}
		for r.left() > 0 {
			op := r.op()
			if r.err != nil {
				yield(model.Op{}, r.err)
				return
			}
			if !yield(op, nil) {
				return
			}
		}
	}
}

func (r *reader) op() model.Op {
	op := model.Op{Kind: model.OpKind(r.byte())}
	op.ID = model.OpID(r.uvarint())
	op.Checksum = model.Checksum(r.uint32())
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		r.uuid((*[16]byte)(&op.Key.Table))
		r.uuid((*[16]byte)(&op.Key.Row))
		op.ObjectType = r.text()
		op.ObjectID = r.text()
		if op.Kind == model.OpPut {
			op.Data = r.text()
		}
	case model.OpMove, model.OpClear:
		op.Target = model.OpID(r.uvarint())
	default:
		r.fail("unknown kind of op")
	}
	return op
}
