{{/*
How many pods the cluster was founded with. They are `voters`, the first voter set, and nothing but the first: who votes later is
agreed on by the voters and kept in the cluster itself. Nodes whose lists differ refuse each other, so a list that followed
`replicas` would split a running cluster during the very upgrade that changes it. It is therefore fixed at the installation, in an
immutable ConfigMap that the pods read and every later upgrade looks up.
*/}}
{{- define "outrigger.initialReplicas" -}}
{{- $name := include "outrigger.foundingName" . -}}
{{- $asked := .Values.cluster.initialReplicas -}}
{{- with lookup "v1" "ConfigMap" .Release.Namespace $name -}}
{{- $recorded := .data.initialReplicas -}}
{{- if and $asked (ne (int $asked) (int $recorded)) -}}
{{- fail (printf "cluster.initialReplicas: got %d, want %s: ConfigMap %s says that this cluster was founded with %s pods, which cannot change" (int $asked) $recorded $name $recorded) -}}
{{- end -}}
{{- $recorded -}}
{{- else -}}
{{- int (default .Values.replicas $asked) -}}
{{- end -}}
{{- end -}}

{{/* Kept in the same way: nodes of another id are refused, so a rolling change of it would split the cluster too. */}}
{{- define "outrigger.clusterId" -}}
{{- $name := include "outrigger.foundingName" . -}}
{{- $asked := .Values.cluster.id -}}
{{- with lookup "v1" "ConfigMap" .Release.Namespace $name -}}
{{- if and $asked (ne $asked .data.id) -}}
{{- fail (printf "cluster.id: got %q, want %q, by which ConfigMap %s says that this cluster was founded" $asked .data.id $name) -}}
{{- end -}}
{{- .data.id -}}
{{- else -}}
{{- default (include "outrigger.fullname" .) $asked -}}
{{- end -}}
{{- end -}}

{{/* app-0,app-1,app-2 */}}
{{- define "outrigger.voters" -}}
{{- $names := list -}}
{{- range until (int (include "outrigger.initialReplicas" .)) -}}
{{- $names = append $names (printf "%s-%d" (include "outrigger.workloadName" $) .) -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{/* outrigger.toml, but for what differs from pod to pod or must never change: those are in the sidecar's environment. */}}
{{- define "outrigger.toml" -}}
{{- $service := include "outrigger.serviceName" . -}}
{{- /* The Service's name stands for all pods, however many; those of the founders are found even where that is not answered whole. */ -}}
{{- $seeds := list (printf "%s:7117" $service) -}}
{{- range splitList "," (include "outrigger.voters" .) -}}
{{- $seeds = append $seeds (printf "%s.%s:7117" . $service) -}}
{{- end -}}
{{- $cluster := dict -}}
{{- if eq .Values.identity.type "certManager" -}}
{{- $_ := set $cluster "tls" (dict "ca" "/etc/outrigger/identity/ca.crt" "cert" "/etc/outrigger/identity/tls.crt" "key" "/etc/outrigger/identity/tls.key") -}}
{{- else -}}
{{- $_ := set $cluster "key_file" (printf "/etc/outrigger/identity/%s" .Values.identity.secret.key) -}}
{{- end -}}
{{- $own := dict
  "node" (dict "data_dir" "/var/lib/outrigger")
  "socket" (dict "path" "/run/outrigger/outrigger.sock" "mode" "0660")
  "peer" (dict "listen" (printf "%s:7117" .Values.bindAddress) "seeds" $seeds)
  "admin" (dict "listen" (printf "%s:9464" .Values.bindAddress))
  "cluster" $cluster -}}
{{- toToml (mergeOverwrite (deepCopy .Values.config) $own) | trim -}}
{{- end -}}
