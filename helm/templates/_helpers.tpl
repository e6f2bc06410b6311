{{/* Names and labels. Every template below takes the chart's own scope; from a chart of one's own that is `.Subcharts.outrigger`. */}}

{{- define "outrigger.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters: a pod's name, with its number, is a label and a DNS name. */}}
{{- define "outrigger.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "outrigger.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The StatefulSet that the sidecar is in: its pods' names are the nodes' names. */}}
{{- define "outrigger.workloadName" -}}
{{- default (include "outrigger.fullname" .) .Values.workload.name -}}
{{- end -}}

{{/* The headless Service that a StatefulSet with the sidecar names in `serviceName`. */}}
{{- define "outrigger.serviceName" -}}
{{- printf "%s-peers" (include "outrigger.fullname" .) -}}
{{- end -}}

{{- define "outrigger.foundingName" -}}
{{- printf "%s-founding" (include "outrigger.fullname" .) -}}
{{- end -}}

{{- define "outrigger.secretName" -}}
{{- default (printf "%s-key" (include "outrigger.fullname" .)) .Values.identity.secret.existingName -}}
{{- end -}}

{{- define "outrigger.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "outrigger.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "outrigger.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* On every pod with the sidecar; the Service, the NetworkPolicy and the PodDisruptionBudget go by them. */}}
{{- define "outrigger.selectorLabels" -}}
app.kubernetes.io/name: {{ include "outrigger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
outrigger/cluster: {{ include "outrigger.fullname" . }}
{{- end -}}

{{- define "outrigger.labels" -}}
{{ include "outrigger.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Kept when the release goes, as the data are: without them those could not be used again. */}}
{{- define "outrigger.keep" -}}
{{- if .Values.persistence.enabled -}}
annotations:
  helm.sh/resource-policy: keep
{{- end -}}
{{- end -}}

{{/* The label `job` of these pods' metrics. */}}
{{- define "outrigger.job" -}}
{{- default (printf "%s/%s" .Release.Namespace (include "outrigger.fullname" .)) .Values.monitoring.job -}}
{{- end -}}
