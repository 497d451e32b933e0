package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// kernel is a fake of the kernel: it processes requests at once and stores the answers.
type kernel struct {
	// do answers one request.
	do     func(h unix.NlMsghdr, body []byte) [][]byte
	room   int  // answers that the receive buffer takes; 0: any number
	most   int  // bytes that can be sent at a time; 0: any number
	silent bool // an overflow is not reported

	lost    bool // an overflow was not reported yet
	answers [][]byte
	sent    [][]uint32 // sequence numbers of each datagram
}

func (k *kernel) send(datagram []byte) error {
	if k.most > 0 && len(datagram) > k.most {
		return unix.EMSGSIZE
	}
	var numbers []uint32
	for h, body := range Messages(datagram) {
		numbers = append(numbers, h.Seq)
		for _, a := range k.do(h, body) {
			if k.room > 0 && len(k.answers) == k.room {
				k.lost = !k.silent
				continue
			}
			k.answers = append(k.answers, a)
		}
	}
	k.sent = append(k.sent, numbers)
	return nil
}

func (k *kernel) pending() ([]byte, error) {
	if k.lost {
		k.lost = false
		return nil, unix.ENOBUFS
	}
	if len(k.answers) == 0 {
		return nil, unix.EAGAIN
	}
	a := k.answers[0]
	k.answers = k.answers[1:]
	return a, nil
}

// conn returns a Conn to the kernel.
func (k *kernel) conn(batch int) *Conn { return &Conn{transport: k, batch: batch} }

// reply is a datagram of one message.
func reply(kind, flags uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 7)
	return pad(append(b, body...))
}

func errorBody(e unix.Errno) []byte {
	return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e)))
}

// refusal is a datagram that refuses a request.
func refusal(seq uint32, e unix.Errno) []byte {
	return reply(unix.NLMSG_ERROR, 0, seq, errorBody(e))
}

// refusing answers a batch like rtnetlink, and refuses the requests for whose number refuse returns
// true.
func refusing(refuse func(n uint32) bool) func(unix.NlMsghdr, []byte) [][]byte {
	return func(h unix.NlMsghdr, body []byte) [][]byte {
		switch n := binary.NativeEndian.Uint32(body); {
		case refuse(n):
			return [][]byte{refusal(h.Seq, unix.Errno(n))}
		case h.Flags&unix.NLM_F_ACK != 0:
			return [][]byte{refusal(h.Seq, 0)}
		}
		return nil
	}
}

// numbered are requests that carry their numbers, from 1 on.
func numbered(n int) *Requests {
	var r Requests
	for i := range n {
		r.Begin(16, 0)
		r.Put32(uint32(i + 1))
	}
	return &r
}

// TestBatchTellsEachResult: whichever answers are lost, each request has its own result.
func TestBatchTellsEachResult(t *testing.T) {
	const n = 100
	third := func(n uint32) bool { return n%3 == 0 }
	for name, c := range map[string]struct {
		k         kernel
		batch     int
		datagrams int // 0: more than without losses
	}{
		"all at once":                   {batch: 512, datagrams: 1},
		"in batches":                    {batch: 30, datagrams: 4},
		"one at a time":                 {batch: 1, datagrams: n},
		"overflow":                      {k: kernel{room: 5}, batch: 512},
		"overflow that is not reported": {k: kernel{room: 5, silent: true}, batch: 512},
		"no room to speak of":           {k: kernel{room: 1}, batch: 64},
		"too much to be sent at a time": {k: kernel{most: 200}, batch: 512},
	} {
		t.Run(name, func(t *testing.T) {
			c.k.do = refusing(third)
			errs := c.k.conn(c.batch).Batch(numbered(n))
			if len(errs) != n {
				t.Fatalf("%d results", len(errs))
			}
			for i, err := range errs {
				var want error
				if third(uint32(i + 1)) {
					want = unix.Errno(i + 1)
				}
				if !errors.Is(err, want) {
					t.Errorf("request %d: %v", i+1, err)
				}
			}
			if c.datagrams != 0 && len(c.k.sent) != c.datagrams {
				t.Errorf("%d datagrams, want %d", len(c.k.sent), c.datagrams)
			}
		})
	}
}

// TestBatchWithoutAnswers: if the kernel does not answer, every request fails without waiting.
func TestBatchWithoutAnswers(t *testing.T) {
	for want, k := range map[error]*kernel{
		ErrNoAnswer:   {do: func(unix.NlMsghdr, []byte) [][]byte { return nil }},
		unix.EMSGSIZE: {most: 1}, // of a broken socket
	} {
		for i, err := range k.conn(8).Batch(numbered(20)) {
			if !errors.Is(err, want) {
				t.Errorf("request %d: %v, want %v", i, err, want)
			}
		}
		if errs := k.conn(8).Batch(&Requests{}); len(errs) != 0 {
			t.Errorf("results of nothing: %v", errs)
		}
	}
}

// TestOldAnswersAreNoAnswers: answers of an interrupted exchange are discarded.
func TestOldAnswersAreNoAnswers(t *testing.T) {
	k := kernel{do: refusing(func(n uint32) bool { return n == 2 })}
	c := k.conn(8)
	for range 3 {
		k.answers = append(k.answers, refusal(c.seq+2, unix.EPERM))
		errs := c.Batch(numbered(3))
		if errs[0] != nil || !errors.Is(errs[1], unix.Errno(2)) || errs[2] != nil {
			t.Errorf("got %v", errs)
		}
	}
	// One that comes after the question, for an earlier one.
	inner := k.do
	k.do = func(h unix.NlMsghdr, body []byte) [][]byte {
		return append([][]byte{refusal(h.Seq-100, unix.EPERM)}, inner(h, body)...)
	}
	if err := c.Do(numbered(1)); err != nil {
		t.Errorf("got %v", err)
	}
}

// TestSequenceNumbersWrap: the number after the last is the first.
func TestSequenceNumbersWrap(t *testing.T) {
	k := kernel{do: refusing(func(n uint32) bool { return n == 5 })}
	c := k.conn(512)
	c.seq = ^uint32(0) - 2
	for i, err := range c.Batch(numbered(10)) {
		if (err != nil) != (i == 4) {
			t.Errorf("request %d: %v", i+1, err)
		}
	}
	if got := k.sent[0]; got[1] != ^uint32(0) || got[2] != 0 {
		t.Errorf("sent numbers %v", got)
	}
}

func TestTransaction(t *testing.T) {
	refuse := func(numbers ...uint32) func(unix.NlMsghdr, []byte) [][]byte {
		return refusing(func(n uint32) bool { return slices.Contains(numbers, n) })
	}
	for name, c := range map[string]struct {
		do   func(unix.NlMsghdr, []byte) [][]byte // the last request is never answered, as with nfnetlink
		want string
	}{
		"done":            {refuse(), "<nil>"},
		"one refused":     {refuse(3), "request 3 of 5: no such process"},
		"several refused": {refuse(2, 3), "request 2 of 5: no such file or directory"},
		"the whole refused": {func(h unix.NlMsghdr, body []byte) [][]byte {
			return refuse(1)(unix.NlMsghdr{Seq: h.Seq}, body)
		}, "request 1 of 5: operation not permitted"},
		"not answered": {func(unix.NlMsghdr, []byte) [][]byte { return nil }, ErrNoAnswer.Error()},
	} {
		k := kernel{do: c.do}
		if err := k.conn(2).Transaction(numbered(5)); fmt.Sprint(err) != c.want {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
		if len(k.sent) != 1 || len(k.sent[0]) != 5 {
			t.Errorf("%s: sent %v, want one datagram", name, k.sent)
		}
	}
	k := kernel{do: refuse(), most: 50}
	if err := k.conn(2).Transaction(numbered(5)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("too long: %v", err)
	}
}

func TestGet(t *testing.T) {
	var answer func(seq uint32) [][]byte
	k := kernel{do: func(h unix.NlMsghdr, _ []byte) [][]byte {
		if h.Flags != unix.NLM_F_REQUEST {
			t.Errorf("flags %#x", h.Flags)
		}
		return answer(h.Seq)
	}}
	c := k.conn(1)
	message := func(seq uint32, body string) []byte { return reply(16, 0, seq, []byte(body)) }
	for name, tt := range map[string]struct {
		answer func(seq uint32) [][]byte
		body   string
		err    error
	}{
		"a message": {func(n uint32) [][]byte { return [][]byte{message(n, "it")} }, "it", nil},
		"others before it": {func(n uint32) [][]byte {
			return [][]byte{message(n+1, "no"), message(n, "it")}
		}, "it", nil},
		"refused": {func(n uint32) [][]byte {
			return [][]byte{refusal(n, unix.ENODEV)}
		}, "", unix.ENODEV},
		"nothing": {func(uint32) [][]byte { return nil }, "", ErrNoAnswer},
		"garbage": {func(uint32) [][]byte { return [][]byte{{1, 2, 3}} }, "", ErrNoAnswer},
	} {
		answer = tt.answer
		r := numbered(1)
		r.setFlag(0, unix.NLM_F_ACK, true)
		body, err := c.Get(r)
		if string(body) != tt.body || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %q, %v", name, body, err)
		}
	}
	k.room = 1
	answer = func(n uint32) [][]byte { return [][]byte{message(n+1, "no"), message(n, "it")} }
	if _, err := c.Get(numbered(1)); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("lost: %v", err)
	}
}

// TestLists: a list is read to its end; one that changed meanwhile is read again, three times at
// most; a failure is the caller's, with or without a part of the list before it.
func TestLists(t *testing.T) {
	const n = 5
	list := func(seq uint32, interrupted bool, end unix.Errno) (all [][]byte) {
		flags := uint16(unix.NLM_F_MULTI)
		for i := range byte(n) {
			all = append(all, reply(16, flags, seq, []byte{i}))
		}
		if interrupted {
			flags |= unix.NLM_F_DUMP_INTR
		}
		return append(all, reply(unix.NLMSG_DONE, flags, seq, errorBody(end)))
	}
	for name, c := range map[string]struct {
		interruptions int
		end           unix.Errno
		room          int
		reads         int
		have          int
		err           error
	}{
		"whole":                {0, 0, 0, 1, n, nil},
		"changed once":         {1, 0, 0, 2, n, nil},
		"changes all the time": {9, 0, 0, 3, n, nil},
		"fails":                {0, unix.EINVAL, 0, 1, n, unix.EINVAL},
		"lost":                 {0, 0, 3, 1, 0, unix.ENOBUFS},
	} {
		reads, have := 0, 0
		k := kernel{room: c.room}
		k.do = func(h unix.NlMsghdr, _ []byte) [][]byte {
			if h.Flags != unix.NLM_F_REQUEST|unix.NLM_F_DUMP {
				t.Errorf("flags %#x", h.Flags)
			}
			reads++
			return list(h.Seq, reads <= c.interruptions, c.end)
		}
		err := k.conn(1).Dump(numbered(1), func() { have = 0 }, func([]byte) { have++ })
		if reads != c.reads || have != c.have || !errors.Is(err, c.err) {
			t.Errorf("%s: %d reads, %d entries, %v", name, reads, have, err)
		}
	}
	for _, interrupted := range []bool{false, true} {
		k := kernel{do: func(h unix.NlMsghdr, _ []byte) [][]byte { return list(h.Seq, interrupted, 0) }}
		c := k.conn(1)
		for _, most := range []int{n + 1, 2, n + 1} { // the rest of one that is cut short answers no request
			seen := 0
			whole, err := c.List(numbered(1), func([]byte) bool { seen++; return seen < most })
			if whole != (!interrupted && most > n) || err != nil || seen != min(most, n) {
				t.Errorf("interrupted %v, at most %d: %d, whole %v, %v", interrupted, most, seen, whole, err)
			}
		}
	}
}
