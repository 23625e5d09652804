package main

import "github.com/denia-paas/denia/test/bench"

// measured runs work and returns what the server used for it, and as
// client_cpu_s what this program did.
func measured(p *bench.Process, work func() error) (bench.Sample, error) {
	before, err := bench.OwnCPU()
	if err != nil {
		return nil, err
	}
	s, err := p.Measure(work)
	if err != nil {
		return nil, err
	}
	after, err := bench.OwnCPU()
	s["client_cpu_s"] = (after - before).Seconds()
	return s, err
}

// perGiB adds rates of a transfer.
func perGiB(s bench.Sample, bytes int64) bench.Sample {
	gib := bench.MiB(bytes) / 1024
	s["cpu_s_per_gib"] = s["cpu_s"] / gib
	s["both_cpu_s_per_gib"] = (s["cpu_s"] + s["client_cpu_s"]) / gib
	s["mb_per_s"] = float64(bytes) / 1e6 / s["wall_s"]
	return s
}

// perRequest adds rates of many small requests.
func perRequest(s bench.Sample, n int) bench.Sample {
	s["req_per_s"] = float64(n) / s["wall_s"]
	s["cpu_us_per_req"] = 1e6 * s["cpu_s"] / float64(n)
	return s
}
