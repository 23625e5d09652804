package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/denia-paas/denia/platform"
	"github.com/denia-paas/denia/platform/ingress"
	"github.com/denia-paas/denia/platform/telemetry"
)

const (
	evidenceLines = 100
	// startAllowance is what the engine may take to create and start replicas
	// before the start period of a candidate is up.
	startAllowance = time.Minute
	// startAttempts: a candidate whose replica ends is started once more; a
	// process that lost a race at its start deserves that, no more.
	startAttempts = 2
	// blindAllowance is how long a candidate waits for an engine that does not
	// answer. Its start period stands still meanwhile.
	blindAllowance = 5 * time.Minute
)

// failure tells whether the candidate has failed, and why, with evidence. Nil
// means: not yet.
func (s *supervisor) failure(ctx context.Context, w *world, pool ingress.PoolStatus) *platform.DeploymentError {
	d := w.candidate
	r := s.release(d.ID)
	if r.since.IsZero() {
		r.since = w.now
	}
	if !r.restore.IsZero() {
		return nil // its image is being brought back, time stands still
	}
	if r.unrestored != nil {
		return lostImage(d.Artifact, r.unrestored)
	}
	if r.lost {
		if d.Artifact.ManifestDigest != "" && r.restores == 0 {
			return nil // it will be
		}
		return lostImage(d.Artifact, r.err)
	}
	if e, ok := errors.AsType[*platform.Error](r.err); ok {
		switch e.Code {
		case platform.CodeStartFailed, platform.CodeDiskFull:
			return &platform.DeploymentError{Code: e.Code, Message: e.Message}
		}
	}
	for _, replica := range w.replicas[d.ID] {
		if replica.State != platform.ReplicaExited {
			continue
		}
		r.countEnd(replica)
		if r.ends[replica.Index] >= startAttempts {
			return s.exited(ctx, d, replica)
		}
	}
	period := time.Duration(d.Config.HealthCheck.StartPeriodS) * time.Second
	for _, replica := range w.replicas[d.ID] {
		if replica.State == platform.ReplicaRunning && !isReady(pool, replica) && r.watched(replica) > period {
			return s.notReady(ctx, d, replica, pool, period)
		}
	}
	if w.now.Sub(r.since) > period+startAllowance {
		failure := &platform.DeploymentError{Code: platform.CodeEngineUnavailable, Message: fmt.Sprintf(
			"The engine did not start the replicas within %s. Check that it is running and has room, then deploy again.", period+startAllowance)}
		if e, ok := errors.AsType[*platform.Error](r.err); ok {
			failure.Message += " Its last word: " + e.Message
		}
		return failure
	}
	return nil
}

func (s *supervisor) exited(ctx context.Context, d *platform.Deployment, replica platform.Replica) *platform.DeploymentError {
	lines := s.plane.replicaTail(ctx, replica)
	evidence := &platform.Evidence{OOMKilled: replica.OOMKilled, LogTail: texts(lines)}
	if replica.OOMKilled {
		evidence.ExitCode = &replica.ExitCode
		return &platform.DeploymentError{Code: platform.CodeOutOfMemory, Evidence: evidence, Message: fmt.Sprintf(
			"The process was killed at its memory limit of %s before it was ready. Raise resources.memory_bytes or make it use less.", megabytes(d.Config.Resources.MemoryBytes))}
	}
	evidence.ExitCode = &replica.ExitCode
	message := fmt.Sprintf("The process ended with exit code %d before it was ready.", replica.ExitCode)
	if replica.ExitCode == 137 {
		// Engines miss that a process was killed for its memory when it takes it all at once.
		message = fmt.Sprintf("The process was killed (exit code 137) before it was ready, perhaps at its memory limit of %s: see resources.memory_bytes.", megabytes(d.Config.Resources.MemoryBytes))
	}
	if len(lines) > 0 {
		message += " Its last lines are in the evidence."
	} else {
		message += " It wrote nothing; check the command and entrypoint."
	}
	return &platform.DeploymentError{Code: platform.CodeContainerExited, Evidence: evidence, Message: message}
}

func (s *supervisor) notReady(ctx context.Context, d *platform.Deployment, replica platform.Replica, pool ingress.PoolStatus, period time.Duration) *platform.DeploymentError {
	evidence := &platform.Evidence{LogTail: texts(s.plane.replicaTail(ctx, replica))}
	var probe ingress.Probe
	for _, t := range pool.Targets {
		if t.ID == targetID(replica) {
			probe = t.LastProbe
		}
	}
	h := d.Config.HealthCheck
	if probe.Status != 0 {
		evidence.LastProbe = fmt.Sprintf("status %d after %s", probe.Status, probe.Latency.Round(time.Millisecond))
		return &platform.DeploymentError{Code: platform.CodeHealthCheckFailed, Evidence: evidence, Message: fmt.Sprintf(
			"GET %s on port %d answered %d, not %s, for %s. Mend what it answers, or set health_check.path or health_check.status.", h.Path, d.Config.Port, probe.Status, h.Status, period)}
	}
	evidence.LastProbe = fmt.Sprintf("%s after %s", probe.Err, probe.Latency.Round(time.Millisecond))
	if probe.Connected {
		return &platform.DeploymentError{Code: platform.CodeHealthCheckFailed, Evidence: evidence, Message: fmt.Sprintf(
			"Port %d accepts connections, but GET %s was not answered within %d s (%s).", d.Config.Port, h.Path, h.TimeoutS, probe.Err)}
	}
	return &platform.DeploymentError{Code: platform.CodePortNotListening, Evidence: evidence, Message: fmt.Sprintf(
		"Nothing accepted connections on port %d within %s. The process must listen on 0.0.0.0 and on the port in $PORT; or set the service's port.", d.Config.Port, period)}
}

func texts(lines []platform.LogLine) []string {
	var all []string
	for _, line := range lines {
		all = append(all, line.Line)
	}
	return all
}

// replicaTail reads the last lines straight from the engine: what the
// collector copies may be a moment behind.
func (p *Plane) replicaTail(ctx context.Context, replica platform.Replica) []platform.LogLine {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	reader, err := p.Runtime.Logs(ctx, replica.ID, platform.LogOptions{})
	if err != nil {
		return p.readTail(serviceLog(replica.ServiceID), replica.Label)
	}
	defer reader.Close()
	var tail []platform.LogLine
	for {
		line, err := reader.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.logFailure("reading a replica's log", err)
			}
			return tail
		}
		if tail = append(tail, line); len(tail) > evidenceLines {
			tail = tail[1:]
		}
	}
}

// readTail reads the last lines of a stored log.
func (p *Plane) readTail(key, replica string) []platform.LogLine {
	lines, err := p.Logs.Read(key, telemetry.Query{Tail: evidenceLines, Replica: replica})
	if err != nil {
		p.logFailure("reading a log", err)
	}
	return lines
}
