package docker

import (
	"maps"
	"slices"
	"strconv"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"

	"github.com/denia-paas/denia/platform"
)

// capabilities is what a replica's root may do: what entrypoints commonly need
// to prepare a volume (CHOWN, DAC_OVERRIDE, FOWNER), to step down to a user and
// manage its processes (SETGID, SETUID, KILL) and to listen on a low port
// (NET_BIND_SERVICE). Of the engine's own default set it leaves out what serves
// attacks more than applications: raw sockets, device nodes, chroot, file
// capabilities, audit records. SETPCAP is left out as well: with no new
// privileges to be gained, dropping some by hand protects from nothing more.
var capabilities = []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"}

// containerSpec says what to create for one replica.
func (e *Engine) containerSpec(w platform.Workload, index int, networkName string) (*container.Config, *container.HostConfig, *network.NetworkingConfig) {
	stopTimeout := grace(w)
	image := w.Digest
	if image == "" {
		image = w.Image
	}
	config := &container.Config{
		Image:      image,
		Env:        environment(w),
		Cmd:        w.Config.Command,
		Entrypoint: w.Config.Entrypoint,
		User:       w.Config.User,
		Labels:     e.containerLabels(w, index),
		// Probes come from the ingress; an image's own would only cost.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
		StopTimeout: &stopTimeout,
	}

	resources := container.Resources{
		Memory:     w.Config.Resources.MemoryBytes,
		MemorySwap: w.Config.Resources.MemoryBytes, // memory and swap together: no swap
		NanoCPUs:   w.Config.Resources.CPUMillis * 1_000_000,
	}
	if resources.NanoCPUs > 0 {
		// The engine's least.
		resources.NanoCPUs = max(resources.NanoCPUs, 10_000_000)
	}
	if pids := w.Config.Resources.PIDs; pids > 0 {
		resources.PidsLimit = &pids
	}
	host := &container.HostConfig{
		Resources:   resources,
		NetworkMode: container.NetworkMode(networkName),
		// The supervisor starts again what has exited.
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		CapDrop:       []string{"ALL"},
		CapAdd:        slices.Clone(capabilities),
		SecurityOpt:   []string{"no-new-privileges"},
		LogConfig: container.LogConfig{
			Type:   "json-file",
			Config: map[string]string{"max-size": "10m", "max-file": "2"},
		},
		// No init process: the engine's would hide a command that cannot be
		// executed behind an exit code, and not every engine has one.
	}
	for _, v := range w.Config.Volumes {
		host.Mounts = append(host.Mounts, mount.Mount{
			Type:     mount.TypeVolume,
			Source:   volumeName(w.ServiceID, v.Name),
			Target:   v.Path,
			ReadOnly: v.ReadOnly,
			VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{
				labelInstance: e.instance,
				labelProject:  string(w.ProjectID),
				labelService:  string(w.ServiceID),
				labelVolume:   v.Name,
			}},
		})
	}
	net := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
		networkName: {Aliases: []string{w.ServiceName}},
	}}
	return config, host, net
}

// environment is what the process sees. PORT is where the ingress will dial,
// so nothing overrides it.
func environment(w platform.Workload) []string {
	env := platform.MergeEnv(w.Config.Env, w.Config.SecretEnv, platform.Env{"PORT": strconv.Itoa(port(w))})
	list := make([]string, 0, len(env))
	for _, key := range slices.Sorted(maps.Keys(env)) {
		list = append(list, key+"="+env[key])
	}
	return list
}
