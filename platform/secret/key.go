// Package secret holds the node's key, seals what must not be readable at rest,
// and hides secret values in text that people see.
package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
)

// Key is the node's age key. It is safe for concurrent use, and prints as its
// public half.
type Key struct {
	sealing    *age.X25519Recipient
	identities []age.Identity
}

// LoadOrCreate reads the age X25519 identity in the file at path, or makes the
// file, mode 0600, with a fresh one. Of processes that do so at the same time
// all get the same key. The format is age-keygen's: lines of comment and
// identities. The first X25519 identity seals, every one unseals, so that a
// key can be replaced by putting a new one above it.
//
// It fails, and changes nothing, when the file holds no such identity or
// others than its owner may read it.
func LoadOrCreate(path string) (*Key, error) {
	key, err := load(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("making the key file %s: %w", path, err)
		}
		key, err = load(path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key file %s: %w", path, err)
	}
	return key, nil
}

func load(path string) (*Key, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others may read it (mode %04o): run chmod 600 on it, and consider the key known to them", info.Mode().Perm())
	}
	identities, err := age.ParseIdentities(io.LimitReader(file, 1<<20))
	if err != nil {
		// age's error quotes the line it stumbled over.
		return nil, errors.New("it is no age key file: restore it from a backup, what was sealed with it cannot be read otherwise")
	}
	for _, identity := range identities {
		if x, ok := identity.(*age.X25519Identity); ok {
			return &Key{sealing: x.Recipient(), identities: identities}, nil
		}
	}
	return nil, errors.New("it holds no X25519 identity (AGE-SECRET-KEY-1…)")
}

// create writes a whole, synced file under another name and links it to path,
// which fails when somebody else was faster: a crash leaves no half key, and a
// key that is there is never replaced.
func create(path string) error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = fmt.Fprintf(file, "# created: %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), identity.Recipient(), identity)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// Seal encrypts plain to the key, in age's format: the age program with the
// key file opens it too.
func (k *Key) Seal(plain []byte) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, k.sealing)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return sealed.Bytes(), nil
}

// Unseal reverses Seal. It fails for bytes that were changed, cut short, or
// sealed with another key.
func (k *Key) Unseal(sealed []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), k.identities...)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return plain, nil
}

// String returns the public half.
func (k *Key) String() string { return k.sealing.String() }
