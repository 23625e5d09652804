package store

import (
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/denia-paas/denia/platform"
)

// secrets is what is cut out of a document and sealed beside it.
type secrets struct {
	Env   platform.Env `json:"env,omitempty"`   // secret_env or shared_secret_env
	Build platform.Env `json:"build,omitempty"` // source.build.secrets
}

// sealed returns the column for sec, NULL when there is nothing to hide.
func (s *Store) sealed(sec secrets) (any, error) {
	if len(sec.Env) == 0 && len(sec.Build) == 0 {
		return nil, nil
	}
	return s.sealJSON(sec)
}

func (s *Store) sealJSON(v any) (any, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding a sealed document: %w", err)
	}
	bytes, err := s.seal(plain)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return bytes, nil
}

// intoSealed opens a sealed column. It leaves v alone for a NULL.
func (s *Store) intoSealed(v any) sql.Scanner {
	return scanFunc(func(value any) error {
		if value == nil {
			return nil
		}
		bytes, ok := value.([]byte)
		if !ok {
			return fmt.Errorf("a sealed document is stored as %T", value)
		}
		plain, err := s.unseal(bytes)
		if err != nil {
			return fmt.Errorf("unsealing: %w", err)
		}
		return json.Unmarshal(plain, v)
	})
}

// cutBuildSecrets returns src without its build secrets, and those.
func cutBuildSecrets(src platform.Source) (platform.Source, platform.Env) {
	if src.Build == nil {
		return src, nil
	}
	options := *src.Build
	found := options.Secrets
	options.Secrets = nil
	src.Build = &options
	return src, found
}

// pasteBuildSecrets undoes cutBuildSecrets.
func pasteBuildSecrets(src *platform.Source, found platform.Env) {
	if len(found) == 0 || src == nil {
		return
	}
	if src.Build == nil {
		src.Build = &platform.BuildOptions{}
	}
	src.Build.Secrets = found
}
