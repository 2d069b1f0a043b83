{{- define "t6d.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "t6d.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "t6d.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "t6d.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "t6d.selectorLabels" -}}
app.kubernetes.io/name: {{ include "t6d.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "t6d.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "t6d.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "t6d.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "t6d.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "t6d.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "t6d.keysSecret" -}}
{{- if .Values.apiKeys.existingSecret }}{{ .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.lines }}{{ include "t6d.fullname" . }}-keys
{{- end }}
{{- end }}

{{- define "t6d.metricsPort" -}}
{{ ternary "admin" "http" .Values.ports.adminEnabled }}
{{- end }}

{{- /* What the three waits of a pod's end take, with 5 s to stop. */ -}}
{{- define "t6d.drainSeconds" -}}
{{ add .Values.drain.preStopSeconds .Values.drain.graceSeconds .Values.drain.deadlineSeconds 5 }}
{{- end }}

{{- define "t6d.terminationGracePeriodSeconds" -}}
{{ .Values.terminationGracePeriodSeconds | default (include "t6d.drainSeconds" . | int) | int }}
{{- end }}
