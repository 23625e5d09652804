package docker

import (
	"fmt"
	"strconv"

	"github.com/docker/docker/api/types/filters"

	"github.com/denia-paas/denia/platform"
)

// Labels on everything the Engine makes.
const (
	labelInstance    = "denia.instance"
	labelProject     = "denia.project"
	labelProjectName = "denia.project-name"
	labelService     = "denia.service"
	labelServiceName = "denia.service-name"
	labelRelease     = "denia.release"
	labelNumber      = "denia.number"
	labelIndex       = "denia.index"
	labelPort        = "denia.port"
	labelGrace       = "denia.stop-grace"
	labelVolume      = "denia.volume"
)

// containerName is for people: the hash at its end is what makes it unique,
// between instances and between names that join to the same text.
func (e *Engine) containerName(w platform.Workload, index int) string {
	return fmt.Sprintf("denia-%s-%s-%d-%d-%s", w.ProjectName, w.ServiceName, w.Number, index,
		short(e.instance, string(w.ID)))
}

func (e *Engine) networkName(project platform.ID) string {
	return "denia-" + short(e.instance) + "-" + short(string(project))
}

func volumeName(service platform.ID, name string) string {
	return fmt.Sprintf("denia-%s-%s", service, name)
}

func (e *Engine) containerLabels(w platform.Workload, index int) map[string]string {
	return map[string]string{
		labelInstance:    e.instance,
		labelProject:     string(w.ProjectID),
		labelProjectName: w.ProjectName,
		labelService:     string(w.ServiceID),
		labelServiceName: w.ServiceName,
		labelRelease:     string(w.ID),
		labelNumber:      strconv.Itoa(w.Number),
		labelIndex:       strconv.Itoa(index),
		labelPort:        strconv.Itoa(port(w)),
		labelGrace:       strconv.Itoa(grace(w)),
	}
}

// ours filters for this instance, and for further labels given as key, value.
func (e *Engine) ours(pairs ...string) filters.Args {
	args := filters.NewArgs(filters.Arg("label", labelInstance+"="+e.instance))
	for i := 0; i+1 < len(pairs); i += 2 {
		args.Add("label", pairs[i]+"="+pairs[i+1])
	}
	return args
}

func port(w platform.Workload) int {
	if w.Config.Port == 0 {
		return platform.DefaultPort
	}
	return w.Config.Port
}

func grace(w platform.Workload) int {
	if w.Config.StopGraceS == nil {
		return platform.DefaultStopGraceS
	}
	return *w.Config.StopGraceS
}

// replicaLabel names a replica for people: "<release number>.<index>".
func replicaLabel(labels map[string]string) string {
	return labels[labelNumber] + "." + labels[labelIndex]
}
