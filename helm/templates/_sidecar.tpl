{{/*
Everything that a pod needs for Outrigger, for this chart's StatefulSet and for one of one's own. There, with this chart as a
dependency and `workload: {create: false, name: NAME}` among its values:

  spec:
    serviceName: {{ include "outrigger.serviceName" .Subcharts.outrigger }}
    podManagementPolicy: Parallel
    template:
      metadata:
        labels: {{- include "outrigger.podLabels" .Subcharts.outrigger | nindent 8 }}
        annotations: {{- include "outrigger.podAnnotations" .Subcharts.outrigger | nindent 8 }}
      spec:
        {{- include "outrigger.podSpec" .Subcharts.outrigger | nindent 6 }}
        initContainers: {{- include "outrigger.sidecar" .Subcharts.outrigger | nindent 8 }}
        containers:
          - name: app
            env: {{- include "outrigger.applicationEnv" .Subcharts.outrigger | nindent 12 }}
            volumeMounts: {{- include "outrigger.applicationVolumeMounts" .Subcharts.outrigger | nindent 12 }}
        volumes: {{- include "outrigger.volumes" .Subcharts.outrigger | nindent 8 }}
    volumeClaimTemplates: {{- include "outrigger.volumeClaimTemplates" .Subcharts.outrigger | nindent 4 }}

Pods are started in parallel: none is ready before a majority is there.
*/}}

{{/* For initContainers, first in the list: the native sidecar, and what follows it. */}}
{{- define "outrigger.sidecar" -}}
- name: outrigger
  image: {{ include "outrigger.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args:
    - serve
    - --config=/etc/outrigger/config/outrigger.toml
    - --log-format={{ .Values.log.format }}
    - --log-level={{ .Values.log.level }}
  env:
    - name: OUTRIGGER__NODE__NAME
      valueFrom: { fieldRef: { fieldPath: metadata.name } }
    - name: OUTRIGGER__CLUSTER__ID
      valueFrom: { configMapKeyRef: { name: {{ include "outrigger.foundingName" . }}, key: id } }
    - name: OUTRIGGER__CLUSTER__VOTERS
      valueFrom: { configMapKeyRef: { name: {{ include "outrigger.foundingName" . }}, key: voters } }
    # What the node tells its peers to dial; they hear of another one when the pod is started elsewhere.
    - name: POD_IP
      valueFrom: { fieldRef: { fieldPath: status.podIP } }
    - name: OUTRIGGER_SOCKET
      value: /run/outrigger/outrigger.sock
    {{- with .Values.sidecar.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: peer, containerPort: 7117, protocol: UDP }
    - { name: admin, containerPort: 9464, protocol: TCP }
  # The containers after this one wait for it. The journal is replayed before the port opens, hence the patience.
  startupProbe:
    httpGet: { path: {{ eq .Values.sidecar.startApplicationWhen "ready" | ternary "/readyz" "/livez" }}, port: admin }
    periodSeconds: 1
    failureThreshold: 600
  readinessProbe:
    httpGet: { path: /readyz, port: admin }
    periodSeconds: 3
    failureThreshold: 2
  livenessProbe:
    httpGet: { path: /livez, port: admin }
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  resources: {{- toYaml .Values.sidecar.resources | nindent 4 }}
  securityContext: {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  volumeMounts:
    - { name: outrigger-socket, mountPath: /run/outrigger }
    - { name: {{ include "outrigger.dataVolumeName" . }}, mountPath: /var/lib/outrigger }
    - { name: outrigger-config, mountPath: /etc/outrigger/config, readOnly: true }
    - { name: outrigger-identity, mountPath: /etc/outrigger/identity, readOnly: true }
    {{- with .Values.sidecar.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- include "outrigger.join" . }}
{{- end -}}

{{- define "outrigger.podLabels" -}}
{{ include "outrigger.selectorLabels" . }}
{{- end -}}

{{/* A changed configuration starts the pods anew, one after the other. */}}
{{- define "outrigger.podAnnotations" -}}
outrigger/config-sha256: {{ include "outrigger.toml" . | sha256sum }}
{{- end -}}

{{/* Lines of a pod's spec. */}}
{{- define "outrigger.podSpec" -}}
serviceAccountName: {{ include "outrigger.serviceAccountName" . }}
automountServiceAccountToken: false
# Links to Services come as variables by the Services' names, and one could look like Outrigger's configuration.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
topologySpreadConstraints:
  {{- range $key, $when := dict "kubernetes.io/hostname" .Values.topologySpread.hostname "topology.kubernetes.io/zone" .Values.topologySpread.zone }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $when }}
    labelSelector:
      matchLabels: {{- include "outrigger.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "outrigger.applicationEnv" -}}
- name: OUTRIGGER_SOCKET
  value: /run/outrigger/outrigger.sock
{{- end -}}

{{- define "outrigger.applicationVolumeMounts" -}}
- { name: outrigger-socket, mountPath: /run/outrigger }
{{- end -}}

{{- define "outrigger.dataVolumeName" -}}
outrigger-data
{{- end -}}

{{- define "outrigger.volumes" -}}
- name: outrigger-socket
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
- name: outrigger-config
  configMap: { name: {{ include "outrigger.fullname" . }} }
- name: outrigger-identity
  {{- if eq .Values.identity.type "certManager" }}
  # A certificate for this pod's name, renewed in place; Outrigger reads it again as it changes.
  csi:
    driver: csi.cert-manager.io
    readOnly: true
    volumeAttributes:
      csi.cert-manager.io/issuer-name: {{ required "identity.certManager.issuerName: got nothing, want an issuer's name" .Values.identity.certManager.issuerName }}
      csi.cert-manager.io/issuer-kind: {{ .Values.identity.certManager.issuerKind }}
      csi.cert-manager.io/issuer-group: {{ .Values.identity.certManager.issuerGroup }}
      csi.cert-manager.io/common-name: ${POD_NAME}
      csi.cert-manager.io/dns-names: ${POD_NAME}
      csi.cert-manager.io/duration: {{ .Values.identity.certManager.duration }}
      csi.cert-manager.io/key-usages: digital signature,server auth,client auth
      csi.cert-manager.io/key-encoding: PKCS8
      csi.cert-manager.io/fs-group: {{ .Values.podSecurityContext.fsGroup | quote }}
  {{- else }}
  # 0440
  secret: { secretName: {{ include "outrigger.secretName" . }}, defaultMode: 288 }
  {{- end }}
{{- if not .Values.persistence.enabled }}
- name: {{ include "outrigger.dataVolumeName" . }}
  emptyDir: {{ with .Values.persistence.emptyDirSizeLimit }}{ sizeLimit: {{ . }} }{{ else }}{}{{ end }}
{{- end }}
{{- end -}}

{{- define "outrigger.volumeClaimTemplates" -}}
{{- if .Values.persistence.enabled -}}
- metadata:
    name: {{ include "outrigger.dataVolumeName" . }}
    {{- with .Values.persistence.annotations }}
    annotations: {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    accessModes: {{- toYaml .Values.persistence.accessModes | nindent 6 }}
    {{- with .Values.persistence.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    resources: { requests: { storage: {{ .Values.persistence.size }} } }
{{- else -}}
[]
{{- end -}}
{{- end -}}
