-- The registry's metadata. Repositories, digests and tags are bytes, because
-- their order and their prefixes count and PostgreSQL's collation of text is
-- not that of bytes; a digest is packed, see pack in registry.go.

-- +goose Up
CREATE TABLE registry_blobs (
    digest BYTEA  NOT NULL PRIMARY KEY,
    size   BIGINT NOT NULL,
    state  TEXT   NOT NULL CHECK (state IN ('live', 'condemned', 'quarantined')),
    gen    BIGINT NOT NULL
);

CREATE TABLE registry_links (
    repo   BYTEA  NOT NULL,
    digest BYTEA  NOT NULL REFERENCES registry_blobs (digest),
    lease  BIGINT NOT NULL,
    PRIMARY KEY (repo, digest)
);
CREATE INDEX registry_links_by_digest ON registry_links (digest);

-- content is last: what is asked for without it need not read over it.
CREATE TABLE registry_manifests (
    repo          BYTEA  NOT NULL,
    digest        BYTEA  NOT NULL,
    lease         BIGINT NOT NULL,
    pushed_at     BIGINT NOT NULL,
    size          BIGINT NOT NULL,
    media_type    TEXT   NOT NULL,
    artifact_type TEXT   NOT NULL,
    subject       BYTEA,
    platforms     TEXT,
    annotations   TEXT,
    content       BYTEA  NOT NULL,
    PRIMARY KEY (repo, digest)
);
CREATE INDEX registry_manifests_by_lease ON registry_manifests (repo, lease, digest);
CREATE INDEX registry_manifests_by_subject ON registry_manifests (repo, subject, digest)
    WHERE subject IS NOT NULL;

CREATE TABLE registry_tags (
    repo       BYTEA  NOT NULL,
    name       BYTEA  NOT NULL,
    digest     BYTEA  NOT NULL,
    pushed_at  BIGINT NOT NULL,
    checked_at BIGINT,
    PRIMARY KEY (repo, name),
    FOREIGN KEY (repo, digest) REFERENCES registry_manifests (repo, digest) ON DELETE CASCADE
);
CREATE INDEX registry_tags_by_manifest ON registry_tags (repo, digest);

-- A child is a manifest or a blob of the repository, or absent.
CREATE TABLE registry_edges (
    repo   BYTEA NOT NULL,
    child  BYTEA NOT NULL,
    parent BYTEA NOT NULL,
    PRIMARY KEY (repo, child, parent),
    FOREIGN KEY (repo, parent) REFERENCES registry_manifests (repo, digest) ON DELETE CASCADE
);
CREATE INDEX registry_edges_by_parent ON registry_edges (repo, parent);

-- What may be garbage. An object that nothing needs always has a row here;
-- one that is needed may have none. repo is empty for blobs.
CREATE TABLE registry_reviews (
    kind   TEXT   NOT NULL CHECK (kind IN ('manifest', 'link', 'blob')),
    repo   BYTEA  NOT NULL,
    digest BYTEA  NOT NULL,
    due_at BIGINT NOT NULL,
    PRIMARY KEY (kind, repo, digest)
);
CREATE INDEX registry_reviews_by_due ON registry_reviews (due_at);
