//go:build !linux && !darwin

package api

import "errors"

func diskUsage(string) (total, available int64, err error) {
	return 0, 0, errors.New("the disk usage is not known on this system")
}
