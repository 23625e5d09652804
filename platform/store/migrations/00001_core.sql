-- One text for SQLite and PostgreSQL: ids are made in Go, times are Unix
-- milliseconds, JSON is opaque text, sealed documents are bytes.

-- +goose Up
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE projects (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    spec       TEXT   NOT NULL,
    secrets    BYTEA,
    version    BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE users (
    id            TEXT    NOT NULL PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    password_hash TEXT    NOT NULL,
    super_admin   BOOLEAN NOT NULL,
    version       BIGINT  NOT NULL,
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL
);

CREATE TABLE members (
    project_id TEXT   NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    user_id    TEXT   NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role       TEXT   NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (project_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id);

-- A token bound to a project goes with it: an unbound token may do more.
CREATE TABLE tokens (
    id           TEXT   NOT NULL PRIMARY KEY,
    user_id      TEXT   NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    kind         TEXT   NOT NULL CHECK (kind IN ('session', 'api')),
    name         TEXT   NOT NULL,
    hash         BYTEA  NOT NULL UNIQUE,
    project_id   TEXT REFERENCES projects (id) ON DELETE CASCADE,
    role         TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT,
    last_used_at BIGINT
);
CREATE INDEX tokens_by_user ON tokens (user_id, created_at, id);
CREATE INDEX tokens_by_project ON tokens (project_id);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);

-- active_deployment_id has no foreign key: it would close a circle with
-- deployments, which one text for both databases cannot write.
CREATE TABLE services (
    id                   TEXT    NOT NULL PRIMARY KEY,
    project_id           TEXT    NOT NULL REFERENCES projects (id),
    name                 TEXT    NOT NULL,
    host_label           TEXT    NOT NULL UNIQUE,
    protocol             TEXT    NOT NULL,
    spec                 TEXT    NOT NULL,
    secrets              BYTEA,
    stopped              BOOLEAN NOT NULL,
    active_deployment_id TEXT,
    version              BIGINT  NOT NULL,
    created_at           BIGINT  NOT NULL,
    updated_at           BIGINT  NOT NULL,
    UNIQUE (project_id, name)
);

CREATE TABLE deployments (
    id               TEXT    NOT NULL PRIMARY KEY,
    service_id       TEXT    NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    number           BIGINT  NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN
        ('pending', 'building', 'starting', 'healthy', 'inactive', 'failed', 'canceled', 'stopped')),
    origin           TEXT    NOT NULL,
    needs_build      BOOLEAN NOT NULL,
    actor            TEXT    NOT NULL,
    source           TEXT    NOT NULL,
    config           TEXT,
    secrets          BYTEA,
    phases           TEXT    NOT NULL,
    artifact         TEXT,
    error            TEXT,
    cancel_requested BOOLEAN NOT NULL,
    created_at       BIGINT  NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT,
    UNIQUE (service_id, number)
);
CREATE INDEX deployments_unfinished ON deployments (created_at, id)
    WHERE status IN ('pending', 'building', 'starting');
CREATE UNIQUE INDEX deployments_one_active ON deployments (service_id)
    WHERE status IN ('healthy', 'stopped');
CREATE UNIQUE INDEX deployments_one_under_way ON deployments (service_id)
    WHERE status IN ('building', 'starting');

CREATE TABLE uploads (
    id            TEXT   NOT NULL PRIMARY KEY,
    service_id    TEXT   NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    size_bytes    BIGINT NOT NULL,
    digest        TEXT   NOT NULL,
    expires_at    BIGINT NOT NULL,
    deployment_id TEXT REFERENCES deployments (id) ON DELETE CASCADE
);
CREATE INDEX uploads_by_service ON uploads (service_id);
CREATE INDEX uploads_by_deployment ON uploads (deployment_id);

-- Audit rows outlive whom and what they name.
CREATE TABLE audit (
    id          TEXT   NOT NULL PRIMARY KEY,
    at          BIGINT NOT NULL,
    actor_id    TEXT   NOT NULL,
    actor       TEXT   NOT NULL,
    token_id    TEXT   NOT NULL,
    remote_ip   TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    project_id  TEXT   NOT NULL,
    resource_id TEXT   NOT NULL,
    status      BIGINT NOT NULL,
    code        TEXT   NOT NULL,
    request_id  TEXT   NOT NULL
);
CREATE INDEX audit_by_time ON audit (at, id);
CREATE INDEX audit_by_project ON audit (project_id, at, id);

-- reply is NULL while the first request is still in flight.
CREATE TABLE idempotency (
    id         BYTEA  NOT NULL PRIMARY KEY,
    body_hash  BYTEA  NOT NULL,
    reply      BYTEA,
    created_at BIGINT NOT NULL
);
CREATE INDEX idempotency_by_time ON idempotency (created_at);

CREATE TABLE leases (
    name       TEXT   NOT NULL PRIMARY KEY,
    holder     TEXT   NOT NULL,
    expires_at BIGINT NOT NULL
);
