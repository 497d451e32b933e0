//go:build system

package dist_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"time"
)

// toolArg makes this program the tool that containers transfer data with. busybox would be too slow
// at copying and hashing.
const toolArg = "transfer"

// pace is the rate of a transfer in bytes per second, so that there is time for an action
// meanwhile.
const pace = 160 << 20

// tool executes "send ADDRESS BYTES" or "receive ADDRESS" and prints the SHA-256 of the data, or
// runs the original's udp backend.
func tool(args []string) int {
	sum, err := []byte(nil), error(nil)
	switch {
	case args[0] == "original" && len(args) > 1:
		err = original(args[1:])
	case args[0] == "send" && len(args) == 3:
		sum, err = send(args[1], args[2])
	case args[0] == "receive" && len(args) == 2:
		sum, err = receive(args[1])
	default:
		err = fmt.Errorf("cannot do %q", args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("%x\n", sum)
	return 0
}

func send(address, bytes string) ([]byte, error) {
	n, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	random, sum, block := rand.NewChaCha8(seed), sha256.New(), make([]byte, 256<<10)
	begun := time.Now()
	for sent := int64(0); sent < n; {
		part := block[:min(int64(len(block)), n-sent)]
		random.Read(part)
		sum.Write(part)
		if _, err := conn.Write(part); err != nil {
			return nil, err
		}
		sent += int64(len(part))
		time.Sleep(time.Duration(sent)*time.Second/pace - time.Since(begun))
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return nil, err
	}
	if _, err := conn.Read(block); err != io.EOF {
		return nil, fmt.Errorf("waiting for the receiver's end: %w", err)
	}
	return sum.Sum(nil), nil
}

func receive(address string) ([]byte, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, conn, make([]byte, 256<<10)); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}
