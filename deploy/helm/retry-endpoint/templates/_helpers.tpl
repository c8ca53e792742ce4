{{- define "retry-endpoint.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "retry-endpoint.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $full | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "retry-endpoint.selector" -}}
app.kubernetes.io/name: {{ include "retry-endpoint.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "retry-endpoint.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "retry-endpoint.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "retry-endpoint.serviceAccount" -}}
{{- $own := .Values.serviceAccount.create | ternary (include "retry-endpoint.fullname" .) "default" -}}
{{- .Values.serviceAccount.name | default $own -}}
{{- end -}}

{{/* The fabric interface of the pod. */}}
{{- define "retry-endpoint.interface" -}}
{{- eq .Values.networking.mode "multus" | ternary .Values.networking.multus.interface .Values.config.mcIface -}}
{{- end -}}

{{/*
The variables of the Go program's chart, as a list of rows: variable, key of `config`, and when it is rendered. `always`, or
`set`: the value is neither empty nor 0 nor false nor null; `bool`: it is true or false; `with KEY`: that key is set.
*/}}
{{- define "retry-endpoint.rows" -}}
- [LISTEN_PORT, listenPort, always]
- [SHARD_BITS, shardBits, always]
- [MC_SCOPE, mcScope, always]
- [MC_GROUP_ID, mcGroupId, always]
- [SOURCE_MODE, sourceMode, always]
- [BIND_SOURCE, bindSource, set]
- [SSM_BOOTSTRAP_MANIFEST, ssmBootstrap.manifest, set]
- [SSM_BOOTSTRAP_BEACON, ssmBootstrap.beacon, set]
- [SSM_BOOTSTRAP_SUBTREE_ANNOUNCE, ssmBootstrap.subtreeAnnounce, set]
- [SSM_PUBLISHERS_STATIC, ssmPublishersStatic, set]
- [SSM_BOOTSTRAP_REFRESH, ssmBootstrapRefresh, set]
- [EGRESS_PORT, egressPort, always]
- [EGRESS_MULTICAST_LOOP, egressMulticastLoop, bool]
- [EGRESS_HOPLIMIT, egressHoplimit, set]
- [DEDUP_WINDOW, dedupWindow, always]
- [PROXY_ENABLED, proxyEnabled, set]
- [UPSTREAM_RETRY_ENDPOINTS, upstreamRetryEndpoints, with proxyEnabled]
- [PROXY_TIMEOUT, proxyTimeout, with proxyEnabled]
- [PROXY_MAX_ENDPOINTS, proxyMaxEndpoints, with proxyEnabled]
- [PROXY_DEDUP_WINDOW, proxyDedupWindow, with proxyEnabled]
- [PROXY_WORKERS, proxyWorkers, with proxyEnabled]
- [PROXY_QUEUE, proxyQueue, with proxyEnabled]
- [NACK_PORT, nackPort, always]
- [NACK_ADDR, nackAddr, set]
- [NACK_WORKERS, nackWorkers, always]
- [CACHE_BACKEND, cacheBackend, always]
- [REDIS_ADDR, redisAddr, set]
- [AEROSPIKE_HOSTS, aerospikeHosts, set]
- [AEROSPIKE_NAMESPACE, aerospikeNamespace, with aerospikeHosts]
- [AEROSPIKE_SET, aerospikeSet, with aerospikeHosts]
- [CACHE_DIAL_TIMEOUT, cacheDialTimeout, always]
- [CACHE_OP_TIMEOUT, cacheOpTimeout, always]
- [CACHE_TTL, cacheTtl, always]
- [CACHE_TTL_TX, cacheTtlTx, always]
- [CACHE_TTL_BLOCK, cacheTtlBlock, always]
- [CACHE_TTL_SUBTREE, cacheTtlSubtree, always]
- [CACHE_TTL_BEEF, cacheTtlBeef, always]
- [BEEF_ENABLED, beefEnabled, always]
- [BEEF_SHARD_BITS, beefShardBits, always]
- [CACHE_TTL_ANCHOR, cacheTtlAnchor, always]
- [CACHE_MAX_KEYS, cacheMaxKeys, always]
- [RL_IP_RATE, rlIpRate, always]
- [RL_IP_BURST, rlIpBurst, always]
- [RL_CHAIN_RATE, rlChainRate, always]
- [RL_CHAIN_WINDOW, rlChainWindow, always]
- [RL_SEQUENCE_MAX, rlSequenceMax, always]
- [RL_SEQUENCE_WINDOW, rlSequenceWindow, always]
- [RL_GROUP_RATE, rlGroupRate, always]
- [RL_GROUP_BURST, rlGroupBurst, always]
- [RL_THROTTLE_RESPONSE, rlThrottleResponse, always]
- [BEACON_ENABLED, beaconEnabled, always]
- [BEACON_TIER, beaconTier, always]
- [BEACON_PREFERENCE, beaconPreference, always]
- [BEACON_INTERVAL, beaconInterval, always]
- [BEACON_SCOPE, beaconScope, always]
- [BEACON_FLAGS_UNICAST, beaconFlagsUnicast, always]
- [BEACON_FLAGS_MULTICAST, beaconFlagsMulticast, always]
- [BEACON_FLAGS_DRAINING, beaconFlagsDraining, always]
- [SUPPRESS_ACK, suppressAck, always]
- [SUPPRESS_MISS, suppressMiss, always]
- [SUBTREE_DATA_ENABLED, subtreeDataEnabled, always]
- [DRAIN_TIMEOUT, drainTimeout, always]
- [DEBUG, debug, always]
- [LOG_FORMAT, logFormat, always]
- [LOG_LEVEL, logLevel, always]
- [TRACE_SAMPLING, traceSampling, set]
- [METRICS_ADDR, metricsAddr, always]
- [INSTANCE_ID, instanceId, set]
- [OTLP_ENDPOINT, otlpEndpoint, set]
- [OTLP_INTERVAL, otlpInterval, with otlpEndpoint]
{{- end -}}

{{/* A value as the daemon reads it: a list as a comma list. */}}
{{- define "retry-endpoint.value" -}}
{{- kindIs "slice" . | ternary (join "," .) (toString .) -}}
{{- end -}}

{{- define "retry-endpoint.env" -}}
{{- $config := .Values.config -}}
- name: MC_IFACE
  value: {{ include "retry-endpoint.interface" . | quote }}
- name: EGRESS_IFACE
  value: {{ $config.egressIface | default (include "retry-endpoint.interface" .) | quote }}
{{- /* Written apart from the rows: mcIface and egressIface above, ssmBootstrap by its parts. */ -}}
{{- $written := list "mcIface" "egressIface" "ssmBootstrap" -}}
{{- range $row := include "retry-endpoint.rows" . | fromYamlArray -}}
{{- $key := index $row 1 -}}
{{- $value := $config -}}
{{- range splitList "." $key -}}
{{- $value = get ($value | default dict) . -}}
{{- end -}}
{{- $when := index $row 2 -}}
{{- $shown := eq $when "always" -}}
{{- if eq $when "set" -}}{{- $shown = not (empty $value) -}}{{- end -}}
{{- if eq $when "bool" -}}{{- $shown = kindIs "bool" $value -}}{{- end -}}
{{- if hasPrefix "with " $when -}}{{- $shown = not (empty (get $config (trimPrefix "with " $when))) -}}{{- end -}}
{{- if $shown }}
- name: {{ index $row 0 }}
  value: {{ include "retry-endpoint.value" $value | quote }}
{{- end -}}
{{- $written = append $written $key -}}
{{- end -}}
{{- range $key, $value := $config -}}
{{- if not (or (has $key $written) (kindIs "invalid" $value) (eq "" (toString $value))) }}
- name: {{ snakecase $key | upper }}
  value: {{ include "retry-endpoint.value" $value | quote }}
{{- end -}}
{{- end -}}
{{- if .Values.xdp.enabled }}
- name: BPFFS
  value: {{ .Values.xdp.bpffs.mountPath | quote }}
{{- else if not (hasKey $config "xdp") }}
- name: XDP
  value: "off"
{{- end -}}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{/* The container's security context, with the capabilities that XDP needs. */}}
{{- define "retry-endpoint.securityContext" -}}
{{- $context := deepCopy .Values.securityContext -}}
{{- if .Values.xdp.enabled -}}
{{- if and (eq "false" (toString $context.allowPrivilegeEscalation)) (ne 0 (int .Values.podSecurityContext.runAsUser)) -}}
{{- fail "securityContext.allowPrivilegeEscalation false keeps the capabilities that XDP needs from a user other than root: leave it out, or set xdp.enabled to false" -}}
{{- end -}}
{{- $capabilities := $context.capabilities | default dict -}}
{{- $added := concat ($capabilities.add | default list) .Values.xdp.capabilities | uniq -}}
{{- $_ := set $context "capabilities" (set $capabilities "add" $added) -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Seconds, rounded up, of a duration in Go notation. */}}
{{- define "retry-endpoint.seconds" -}}
{{- $total := 0.0 -}}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 "us" 0.000001 "µs" 0.000001 "ns" 0.000000001 -}}
{{- range regexFindAll "[0-9.]+(h|ms|m|s|us|µs|ns)" (toString .) -1 -}}
{{- $unit := regexFind "[a-zµ]+$" . -}}
{{- $total = addf $total (mulf (trimSuffix $unit . | float64) (get $units $unit)) -}}
{{- end -}}
{{- ceil $total | int64 -}}
{{- end -}}

{{/* MiB, rounded up, of a size as -cache-memory takes it. */}}
{{- define "retry-endpoint.mebibytes" -}}
{{- $text := toString . | lower -}}
{{- $units := dict "k" 1024.0 "m" 1048576.0 "g" 1073741824.0 -}}
{{- $factor := get $units (regexFind "[kmg]$" $text) | default 1.0 -}}
{{- divf (mulf (regexReplaceAll "[kmg]$" $text "" | float64) $factor) 1048576.0 | ceil | int64 -}}
{{- end -}}

{{/* MiB, rounded up, of a Kubernetes quantity. */}}
{{- define "retry-endpoint.quantity" -}}
{{- $text := toString . -}}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := regexFind "[A-Za-z]+$" $text -}}
{{- divf (mulf (trimSuffix $unit $text | float64) (get $units $unit | default 1.0)) 1048576.0 | floor | int64 -}}
{{- end -}}

{{/*
MiB that the pod needs: the rings in segments of 16 MiB, their index (`Sizes::new` of the daemon), the hold-down table, the limit
tables of kernel and daemon, and what is left of the process.
*/}}
{{- define "retry-endpoint.memory" -}}
{{- $segments := 0 -}}
{{- range list (.Values.config.cacheMemory | default "256m") (.Values.config.cacheMemoryLong | default "64m") -}}
{{- $segments = add $segments (max 1 (ceil (divf (include "retry-endpoint.mebibytes" . | float64) 16.0))) -}}
{{- end -}}
{{- $ring := mul $segments 16 -}}
{{- $wanted := mul $ring 2048 -}}
{{- $buckets := 1 -}}
{{- range until 32 -}}
{{- if lt $buckets $wanted -}}{{- $buckets = mul $buckets 2 -}}{{- end -}}
{{- end -}}
{{- if gt (mul $buckets 3) (mul $wanted 4) -}}{{- $buckets = div $buckets 2 -}}{{- end -}}
{{- $index := div $buckets 16384 -}}
{{- $entries := .Values.config.limitTableEntries | default 65536 | float64 -}}
{{- $tables := ceil (divf (mulf 40.0 $entries) 65536.0) | int64 -}}
{{- add $ring $index 2 $tables 64 -}}
{{- end -}}

{{- define "retry-endpoint.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- $need := include "retry-endpoint.memory" . | int64 -}}
{{- range $kind := list "requests" "limits" -}}
{{- $part := get $resources $kind | default dict -}}
{{- if not (get $part "memory") -}}
{{- $_ := set $part "memory" (printf "%dMi" $need) -}}
{{- else if and (eq $kind "limits") (lt (include "retry-endpoint.quantity" $part.memory | int64) $need) -}}
{{- fail (printf "resources.limits.memory %v is less than the %dMi that the cache takes at the start: raise it, leave it out to have it computed, or lower config.cacheMemory" $part.memory $need) -}}
{{- end -}}
{{- $_ := set $resources $kind $part -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
