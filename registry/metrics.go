package registry

import "github.com/prometheus/client_golang/prometheus"

// metrics count what the registry does. The counters of one vector are taken
// out of it once, so that counting costs an addition.
type metrics struct {
	manifestPulls, blobPulls     prometheus.Counter
	manifestPushes, blobPushes   prometheus.Counter
	manifestDeletes, blobDeletes prometheus.Counter

	received, sent prometheus.Counter // bytes of blobs and manifests
	uploads        prometheus.Gauge   // sessions in progress

	cacheHits   prometheus.Counter // answered from what was stored
	cacheMisses prometheus.Counter // fetched
	cacheStale  prometheus.Counter // answered from what was stored, because the upstream could not be asked
	cacheSaved  prometheus.Counter // bytes that hits did not fetch

	cacheFetched prometheus.Counter // bytes

	collections        prometheus.Counter
	collectionFreed    prometheus.Counter   // bytes
	collectionDuration prometheus.Histogram // seconds
	collectionWait     prometheus.Histogram // seconds that a collection kept somebody waiting for a digest's lock

	scrubbed    prometheus.Counter // bytes hashed again
	quarantined prometheus.Counter // blobs found damaged

	all []prometheus.Collector
}

func newMetrics() *metrics {
	m := &metrics{}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "denia", Subsystem: "registry", Name: name, Help: help})
		m.all = append(m.all, c)
		return c
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "denia", Subsystem: "registry", Name: name, Help: help}, []string{label})
		m.all = append(m.all, v)
		return v
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "denia", Subsystem: "registry", Name: name, Help: help, Buckets: buckets})
		m.all = append(m.all, h)
		return h
	}

	pulls := vector("pulls_total", "Manifests and blobs that clients got. A HEAD request is none.", "kind")
	m.manifestPulls, m.blobPulls = pulls.WithLabelValues("manifest"), pulls.WithLabelValues("blob")
	pushes := vector("pushes_total", "Manifests and blobs that were stored or found to be there already.", "kind")
	m.manifestPushes, m.blobPushes = pushes.WithLabelValues("manifest"), pushes.WithLabelValues("blob")
	deletes := vector("deletes_total", "Manifests, tags and blobs that a client deleted.", "kind")
	m.manifestDeletes, m.blobDeletes = deletes.WithLabelValues("manifest"), deletes.WithLabelValues("blob")

	m.received = counter("received_bytes_total", "Bytes of manifests and blobs received from clients.")
	m.sent = counter("sent_bytes_total", "Bytes of manifests and blobs sent to clients.")
	m.uploads = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "denia", Subsystem: "registry", Name: "uploads", Help: "Upload sessions in progress.",
	})
	m.all = append(m.all, m.uploads)

	cached := vector("cache_requests_total", "Requests for content of other registries: answered from the store (hit), fetched (miss), or answered from the store because the upstream could not be asked (stale).", "result")
	m.cacheHits, m.cacheMisses, m.cacheStale = cached.WithLabelValues("hit"), cached.WithLabelValues("miss"), cached.WithLabelValues("stale")

	m.cacheFetched = counter("cache_fetched_bytes_total", "Bytes of manifests and blobs fetched from other registries.")
	m.cacheSaved = counter("cache_saved_bytes_total", "Bytes of manifests and blobs that were stored already when they were asked for.")

	m.collections = counter("collections_total", "Collections that were run.")
	m.collectionFreed = counter("collection_freed_bytes_total", "Bytes of disk that collections freed.")
	m.collectionDuration = histogram("collection_duration_seconds", "How long a collection took.",
		[]float64{.001, .01, .1, 1, 10, 60, 600})
	m.collectionWait = histogram("collection_wait_seconds", "How long a commit waited for the collection of the same digest.",
		[]float64{.0001, .001, .01, .1, 1})

	m.scrubbed = counter("scrubbed_bytes_total", "Bytes of stored blobs hashed again to see whether they are intact.")
	m.quarantined = counter("quarantined_blobs_total", "Blobs whose stored bytes were found damaged.")
	return m
}

// Collectors returns the registry's Prometheus metrics, for the caller to
// register.
func (g *Registry) Collectors() []prometheus.Collector { return g.metrics.all }
