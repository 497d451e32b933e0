// Command sbom prints the software bill of materials of a Go binary as CycloneDX JSON: the modules
// that the linker has recorded, with their checksums, and the Go release with its standard library.
//
// It reads only the binary, so it cannot list anything else, and it has no licences. The same
// binary gives the same bytes.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("sbom: ")
	version := flag.String("version", "dev", "`version` of the program")
	epoch := flag.Int64("epoch", 0, "`seconds` since 1970: the time of the document")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("one binary is needed")
	}
	binary, err := os.ReadFile(flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	if err := write(os.Stdout, binary, *version, time.Unix(*epoch, 0)); err != nil {
		log.Fatalf("%s: %v", flag.Arg(0), err)
	}
}

func write(w io.Writer, binary []byte, version string, at time.Time) error {
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return err
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	sum := sha256.Sum256(binary)
	program := cdx.Component{
		BOMRef:  "program",
		Type:    cdx.ComponentTypeApplication,
		Name:    path.Base(info.Path),
		Version: version,
		Hashes:  &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
		Properties: &[]cdx.Property{
			{Name: "GOOS", Value: settings["GOOS"]},
			{Name: "GOARCH", Value: settings["GOARCH"]},
		},
	}
	components, err := modules(info)
	if err != nil {
		return err
	}
	refs := make([]string, len(components))
	for i, c := range components {
		refs[i] = c.BOMRef
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: at.UTC().Format(time.RFC3339), Component: &program}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: program.BOMRef, Dependencies: &refs}}
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
}

// modules returns the linked modules, the standard library first, then the others in the order of
// their paths.
func modules(info *debug.BuildInfo) ([]cdx.Component, error) {
	list := []cdx.Component{library("std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		if strings.HasPrefix(m.Path, "./") {
			continue // replaced by a directory of this repository
		}
		c := library(m.Path, m.Version)
		// An h1 of go.sum is also a SHA-256, of the list of the module's files with their
		// checksums.
		h1, ok := strings.CutPrefix(m.Sum, "h1:")
		sum, err := base64.StdEncoding.DecodeString(h1)
		if !ok || err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("module %s has sum %q", m.Path, m.Sum)
		}
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}}
		list = append(list, c)
	}
	return list, nil
}

func library(name, version string) cdx.Component {
	url := "pkg:golang/" + name + "@" + version
	return cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: name, Version: version, PackageURL: url}
}
