{{/*
TODO(scale): what depends on `outrigger cluster add|remove NODE` is here and in scale-down.yaml, behind `scaling.enabled`.

A pod beyond the founders joins by itself: once its sidecar is started, `cluster add` makes it a voter, and returns when it is one.
The same template is every pod's, so the founders run it too, and so does every restart; for a node that votes already it must
end at once, with or without a quorum in reach. Before `cluster add` exists, another number of pods than the founders' is refused:
a pod that is no voter would not start, and one voter less would only make the cluster weaker.
*/}}
{{- define "outrigger.join" -}}
{{- $initial := int (include "outrigger.initialReplicas" .) }}
{{- if .Values.scaling.enabled }}
- name: outrigger-join
  image: {{ include "outrigger.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [cluster, add, $(NODE)]
  env:
    - name: NODE
      valueFrom: { fieldRef: { fieldPath: metadata.name } }
    {{- include "outrigger.applicationEnv" . | nindent 4 }}
  resources: { requests: { cpu: 10m, memory: 16Mi }, limits: { memory: 64Mi } }
  securityContext: {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  volumeMounts: {{- include "outrigger.applicationVolumeMounts" . | nindent 4 }}
{{- else if ne (int .Values.replicas) $initial }}
{{- fail (printf "replicas: got %d, want %d, which this cluster was founded with: this version of Outrigger cannot change who votes" (int .Values.replicas) $initial) }}
{{- end }}
{{- end -}}

{{/* How many pods there are before this upgrade; nothing at an installation. */}}
{{- define "outrigger.previousReplicas" -}}
{{- if .Values.scaling.previousReplicas -}}
{{- .Values.scaling.previousReplicas -}}
{{- else -}}
{{- with lookup "apps/v1" "StatefulSet" .Release.Namespace (include "outrigger.workloadName" .) -}}
{{- .spec.replicas -}}
{{- end -}}
{{- end -}}
{{- end -}}
