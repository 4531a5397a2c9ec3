{{/* Labels by which a part's pods are found: dict "root" $ "part" "server". */}}
{{- define "consilium.selector" -}}
app.kubernetes.io/name: consilium
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "consilium.labels" -}}
{{ include "consilium.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "consilium.name" -}}
{{ printf "%s-%s" (.root.Release.Name | trunc 40 | trimSuffix "-") .part }}
{{- end }}

{{/* What both programs' pods have in common: no rights, no token, a reaper of orphans. */}}
{{- define "consilium.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: true
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.user }}
  runAsGroup: {{ .Values.user }}
  fsGroup: {{ .Values.user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "consilium.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The container's own health command: dict "address" "127.0.0.1:9094" "page" "readyz". */}}
{{- define "consilium.health" -}}
exec:
  command:
    - python3
    - -c
    - import os, urllib.request; urllib.request.urlopen('http://' + os.environ.get('METRICS_ADDRESS', '{{ .address }}') + '/{{ .page }}')
timeoutSeconds: 5
{{- end }}

{{- define "consilium.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .class }}
storageClassName: {{ . | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .size | quote }}
{{- end }}

{{/* Ingress for Prometheus, or nothing: dict "root" $ "port" 9094. */}}
{{- define "consilium.scrape" -}}
{{- with .root.Values.metrics.namespace }}
- from:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . | quote }}
  ports:
    - {protocol: TCP, port: {{ $.port }}}
{{- end }}
{{- end }}
