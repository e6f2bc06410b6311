{{/*
Every pod's node votes. The founders do from the beginning; a pod beyond them starts as an observer and is made a voter here, once
its sidecar is started and before its application is. `cluster add` waits for its turn where several pods come at once, since voters
change one at a time, and returns when the vote is this disk's.

The template is every pod's, so the founders run it too, and so does a pod that is started again. Of a node that votes already nothing is
asked. With no majority in reach it ends after 5 s all the same, so that an application which may read without one
(`sidecar.startApplicationWhen: live`) starts. The other way round nothing that merely stops or restarts takes a vote away: that is for
scale-down.yaml alone.

Not fewer pods than half the founders: a majority of the founders with empty volumes, as pods come back to which were scaled away,
takes itself for a new cluster for as long as it has not met the others.
*/}}
{{- define "outrigger.join" -}}
{{- $initial := int (include "outrigger.initialReplicas" .) }}
{{- $least := sub $initial (div $initial 2) }}
{{- if lt (int .Values.replicas) (int $least) }}
{{- fail (printf "replicas: got %d, want at least %d: this cluster was founded with %d pods, and most of them, back with empty volumes, would found another" (int .Values.replicas) (int $least) $initial) }}
{{- end }}
{{- if .Values.scaling.enabled }}
- name: outrigger-join
  image: {{ include "outrigger.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [cluster, add, $(NODE), --within={{ .Values.scaling.timeoutSeconds }}s]
  env:
    - name: NODE
      valueFrom: { fieldRef: { fieldPath: metadata.name } }
    {{- include "outrigger.applicationEnv" . | nindent 4 }}
  resources: { requests: { cpu: 10m, memory: 16Mi }, limits: { memory: 64Mi } }
  securityContext: {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  volumeMounts: {{- include "outrigger.applicationVolumeMounts" . | nindent 4 }}
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
