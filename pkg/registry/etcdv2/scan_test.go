package etcdv2_test

import (
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	client "go.etcd.io/etcd/client/v2"

	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcdv2"
)

func TestScanReadsWhatTheClientReads(t *testing.T) {
	most := strings.Repeat("x", registry.MaxValue)
	for _, in := range []string{
		`{"node":{}}`,
		` { "node" : { "key" : "/a" , "nodes" : [ ] } , "action" : "get" } ` + "\n",
		`{"action":"set","node":{"key":"/a/b","value":"{\"PublicIP\":\"198.51.100.1\"}","modifiedIndex":18446744073709551615,"createdIndex":3,"ttl":86400,"expiration":"2026-11-29T22:00:00.5Z"},"prevNode":{"key":"/a/b","value":"x"}}`,
		`{"node":{"dir":true,"key":"/a","nodes":[{"key":"/a/1","value":"\u0000\t\\\/\u003cü€😀\ud83d\ude00\ud83d"},{"key":"/a/2","dir":true},{"key":"/a/\nx\u2028","value":""}]}}`,
		`{"more":[{"a":[1,-2.5e7,null,true,"]}\"\\"]},[[[]]]],"node":{"value":"` + most + `"}}`,
		`{"node":{"value":"first","value":"last"}}`,
	} {
		var want client.Response
		if err := json.Unmarshal([]byte(in), &want); err != nil {
			t.Fatal(err)
		}
		want.PrevNode = nil
		for _, n := range append(want.Node.Nodes, want.Node) {
			if n.Expiration != nil {
				n.Expiration = &time.Time{}
			}
		}
		if len(want.Node.Nodes) == 0 {
			want.Node.Nodes = nil
		}
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(in), "byte by byte": iotest.OneByteReader(strings.NewReader(in))} {
			if got, err := etcdv2.Scan(r); err != nil || !reflect.DeepEqual(got, &want) {
				t.Errorf("%s, %.200s:\n got %+v %+v, %v\nwant %+v %+v", name, in, got, got.Node, err, &want, want.Node)
			}
		}
	}
}

func TestScanRefusesWhatIsNoAnswer(t *testing.T) {
	for in, want := range map[string]string{
		``:                                    "broken JSON",
		`{"node`:                              "broken JSON",
		`{"node":{"key":"/a"}`:                "broken JSON",
		`{"node":{"key":"/a"}} {}`:            "after its end",
		`{"node":{"key":"/a",}}`:              "in place of a name",
		`{"node":{"key" "/a"}}`:               "in place of ':'",
		`{"node":{"nodes":[{"key":"/a"} 1]}}`: "in place of ']'",
		`{"node":{"x":}}`:                     "in place of a value",
		`{"node":{"modifiedIndex":-1}}`:       "in place of a number",
		`{"node":{"modifiedIndex":1.5}}`:      "broken JSON",
		`{"node":{"key":"\ud83x"}}`:           "in a string",
		`{"node":{"key":"` + "\n" + `"}}`:     "broken JSON",
		`{"ok":true}`:                         "it has no node",
		`{"node":null}`:                       "it has no node",
		`[]`:                                  "broken JSON",
		"\x00\x00":                            "broken JSON",
	} {
		if got, err := etcdv2.Scan(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, error %v, want %q in it", in, got, err, want)
		}
	}
}

// TestScanMarksLongValues: the length of a value is that of its text, whatever its characters.
func TestScanMarksLongValues(t *testing.T) {
	for _, text := range []string{"x", `"`, "\n", "\x01", "ü", "€", "😀", "<"} {
		value := strings.Repeat(text, registry.MaxValue/len(text)+1)
		node, err := json.Marshal(map[string]any{"node": client.Node{Key: "/" + value, Value: value}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := etcdv2.Scan(strings.NewReader(string(node)))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if size, is := etcdv2.Long(got.Node.Value); !is || size != int64(len(value)) {
			t.Errorf("%q: %.20q, of %d bytes", text, got.Node.Value, len(value))
		}
		if key := strings.TrimRight(got.Node.Key[1:], "\ufffd"); !strings.HasPrefix(value, key) || len(key) < registry.MaxValue-8 || len(key) > 2*registry.MaxValue {
			t.Errorf("%q: key of %d bytes", text, len(got.Node.Key))
		}
	}
}

// FuzzScan: if encoding/json accepts an input, the scanner returns the same values. If it does not,
// the scanner may accept errors in what it skips.
func FuzzScan(f *testing.F) {
	f.Add(`{"action":"get","node":{"key":"/a","dir":true,"nodes":[{"key":"/a/b","value":"\"\u00fc\ud83d","ttl":5,"modifiedIndex":7}]},"prevNode":{"value":[{}]}}`)
	f.Add(`{"node":{"value":"x"},"x":[[],{"y":-1e5}]}`)
	f.Fuzz(func(t *testing.T, in string) {
		got, err := etcdv2.Scan(strings.NewReader(in))
		var want struct {
			Node *struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"node"`
		}
		if json.Unmarshal([]byte(in), &want) != nil || err != nil || want.Node == nil {
			return
		}
		// encoding/json matches names case-insensitively and uses all duplicates.
		once := func(name string) bool {
			return strings.Count(strings.ToLower(in), name) == 1 && strings.Contains(in, `"`+name+`":`)
		}
		if !strings.Contains(in, `\u`) && once("node") && once("key") && once("value") && (got.Node.Key != want.Node.Key || got.Node.Value != want.Node.Value) {
			t.Errorf("key %q with %q, want %q with %q", got.Node.Key, got.Node.Value, want.Node.Key, want.Node.Value)
		}
	})
}
