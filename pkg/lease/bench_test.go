package lease_test

import (
	"fmt"
	"testing"

	"flanneld/pkg/lease"
)

// BenchmarkDecode measures the decoding of one lease in a listing. A host of a large network
// decodes 20,000 at its start.
func BenchmarkDecode(b *testing.B) {
	const key = "10.42.7.0-24"
	for name, value := range map[string]string{
		"vxlan":     `{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}`,
		"spaced":    `{"PublicIP": "198.51.100.7", "PublicIPv6": null, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "02:11:22:33:44:55"}}`,
		"host-gw":   `{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"host-gw"}`,
		"wireguard": fmt.Sprintf(`{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"%044d"}}`, 1),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := lease.ParseKey(key); err != nil {
					b.Fatal(err)
				}
				if _, err := lease.DecodeAttrs([]byte(value)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("key", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := lease.ParseKey(key); err != nil {
				b.Fatal(err)
			}
		}
	})
}
