package api

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Parameters of new password hashes (RFC 9106). concurrentHashes bounds the
// memory a flood of logins can take.
const (
	hashMemory       = 46 << 10 // KiB
	hashTime         = 3
	hashThreads      = 1
	hashSalt         = 16
	hashKey          = 32
	concurrentHashes = 2
)

var base64PHC = base64.RawStdEncoding

// hashPassword returns the PHC string of a password.
func (a *API) hashPassword(ctx context.Context, password string) (string, error) {
	release, err := a.hashSlot(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	salt := make([]byte, hashSalt)
	rand.Read(salt)
	key := argon2.IDKey([]byte(password), salt, hashTime, hashMemory, hashThreads, hashKey)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, hashMemory, hashTime, hashThreads,
		base64PHC.EncodeToString(salt), base64PHC.EncodeToString(key)), nil
}

// checkPassword tells whether the password belongs to the PHC string. For an
// empty one it takes as long as for any other, and says no.
func (a *API) checkPassword(ctx context.Context, phc, password string) (bool, error) {
	release, err := a.hashSlot(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if phc == "" {
		argon2.IDKey([]byte(password), make([]byte, hashSalt), hashTime, hashMemory, hashThreads, hashKey)
		return false, nil
	}
	h, err := parsePHC(phc)
	if err != nil {
		return false, err
	}
	key := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(key, h.key) == 1, nil
}

func (a *API) hashSlot(ctx context.Context) (release func(), err error) {
	select {
	case a.hashing <- struct{}{}:
		return func() { <-a.hashing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type phcHash struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func parsePHC(phc string) (h phcHash, err error) {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, fmt.Errorf("reading a password hash: not argon2id version %d", argon2.Version)
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return h, fmt.Errorf("reading a password hash's parameters: %w", err)
	}
	if h.salt, err = base64PHC.DecodeString(parts[4]); err != nil {
		return h, fmt.Errorf("reading a password hash's salt: %w", err)
	}
	if h.key, err = base64PHC.DecodeString(parts[5]); err != nil {
		return h, fmt.Errorf("reading a password hash's key: %w", err)
	}
	if h.memory > 1<<20 || h.time == 0 || h.time > 100 || h.threads == 0 || len(h.key) < 16 {
		return h, fmt.Errorf("reading a password hash: parameters out of range")
	}
	return h, nil
}
