package testpg_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/denia-paas/denia/internal/testpg"
)

func TestStart_GivesEachTestItsOwnDatabase(t *testing.T) {
	ctx := context.Background()
	var first string
	t.Run("first", func(t *testing.T) {
		first = testpg.Start(t)
		for _, dsn := range []string{first, testpg.Start(t)} {
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(ctx, `CREATE TABLE mine (id BIGINT)`); err != nil {
				t.Error(err)
			}
			conn.Close(ctx)
		}
	})
	if conn, err := pgx.Connect(ctx, first); err == nil {
		conn.Close(ctx)
		t.Error("the database outlives its test")
	}
}
