package caddymodule

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/denia-paas/denia/platform/ingress"
)

// collectors are the Engine's metrics. Each configuration has a registry of
// its own, which gets them when it starts.
func (e *Engine) collectors() []prometheus.Collector {
	return slices.Concat(e.registry.Collectors(), []prometheus.Collector{traffic{e.ingress}})
}

// traffic shows what the ingress has counted. It counts nothing by itself: a
// request touches nothing but its service's own numbers.
type traffic struct{ ingress *ingress.Ingress }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("denia_ingress_"+name, help, labels, nil)
}

var (
	durationDesc = describe("request_duration_seconds", "How long requests took, from their header to the end of the answer; without WebSockets and event streams.", "project", "service", "release")
	requestsDesc = describe("requests_total", "Requests that have ended, by the class of their status.", "project", "service", "release", "class")
	inFlightDesc = describe("requests_in_flight", "Requests that a replica is at, WebSockets and event streams among them.", "project", "service", "release")
	waitingDesc  = describe("requests_waiting", "Requests that wait for a replica to be ready.", "project", "service")
	retriesDesc  = describe("retries_total", "Times a request was sent again.", "project", "service", "release")
	coldDesc     = describe("cold_starts_total", "Requests that waited for the first replica to be ready, and were sent to it.", "project", "service", "release")
	bytesInDesc  = describe("request_bytes_total", "Bytes of the requests' bodies.", "project", "service", "release")
	bytesOutDesc = describe("response_bytes_total", "Bytes of the answers' bodies.", "project", "service", "release")
	lostDesc     = describe("access_entries_lost_total", "Access entries that could not be kept, because the disk was full or too slow.")
	strangerDesc = describe("unknown_host_requests_total", "Requests for hosts that no service has.")

	classes = [...]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}
)

// Describe implements prometheus.Collector.
func (traffic) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{durationDesc, requestsDesc, inFlightDesc, waitingDesc, retriesDesc, coldDesc, bytesInDesc, bytesOutDesc, lostDesc, strangerDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector. A release that is empty stands for
// what Denia answered itself.
func (t traffic) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	type place struct{ project, service string }
	seen := map[place]bool{}
	for _, s := range t.ingress.Traffic() {
		// Of a service that takes the name of one that was just deleted, the
		// registry would refuse the whole.
		if at := (place{s.Project, s.Name}); s.Name == "" || seen[at] {
			continue
		} else {
			seen[at] = true
		}
		gauge(waitingDesc, s.Waiting, s.Project, s.Name)
		for _, r := range s.Releases {
			labels := []string{s.Project, s.Name, r.Number}
			gauge(inFlightDesc, r.InFlight, labels...)
			for class, n := range r.Requests {
				if n > 0 {
					counter(requestsDesc, n, append(labels, classes[class])...)
				}
			}
			out <- histogram(&r.Totals, labels)
			counter(retriesDesc, r.Retries, labels...)
			counter(coldDesc, r.ColdStarts, labels...)
			counter(bytesInDesc, r.BytesIn, labels...)
			counter(bytesOutDesc, r.BytesOut, labels...)
		}
	}
	counter(lostDesc, t.ingress.Lost())
	counter(strangerDesc, t.ingress.Strangers())
}

func histogram(t *ingress.Totals, labels []string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(ingress.DurationBounds))
	count := uint64(0)
	for i, bound := range ingress.DurationBounds {
		count += t.Durations[i]
		buckets[bound] = count
	}
	count += t.Durations[len(ingress.DurationBounds)]
	return prometheus.MustNewConstHistogram(durationDesc, count, t.Seconds, buckets, labels...)
}
