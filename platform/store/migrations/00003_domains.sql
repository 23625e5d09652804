-- Domains, and the certificates for them.

-- +goose Up
-- What the service's spec says of TLS, so that routing need not read specs;
-- empty until the first start with this schema has filled it.
ALTER TABLE services ADD COLUMN tls TEXT NOT NULL DEFAULT '';

-- Claims to host names: any number for one name, at most one of them verified.
CREATE TABLE domains (
    id              TEXT   NOT NULL PRIMARY KEY,
    service_id      TEXT   NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    hostname        TEXT   NOT NULL,
    token           TEXT   NOT NULL UNIQUE,
    status          TEXT   NOT NULL CHECK (status IN ('pending', 'verified', 'failed')),
    error           TEXT,
    verified_at     BIGINT,
    last_check_at   BIGINT,
    proven_at       BIGINT,
    disproven_since BIGINT,
    next_check_at   BIGINT,
    created_at      BIGINT NOT NULL,
    UNIQUE (service_id, hostname)
);
CREATE UNIQUE INDEX domains_one_verified ON domains (hostname) WHERE status = 'verified';
CREATE INDEX domains_by_check ON domains (next_check_at) WHERE status = 'verified';

-- The files of certificates, private keys among them: value is sealed. Keys are
-- bytes, because their order counts and PostgreSQL's collation of text is not
-- that of bytes.
CREATE TABLE certificate_files (
    key      BYTEA  NOT NULL PRIMARY KEY,
    value    BYTEA  NOT NULL,
    modified BIGINT NOT NULL,
    size     BIGINT NOT NULL
);

-- beat changes while the holder lives.
CREATE TABLE certificate_locks (
    name   TEXT   NOT NULL PRIMARY KEY,
    holder TEXT   NOT NULL,
    beat   BIGINT NOT NULL
);
