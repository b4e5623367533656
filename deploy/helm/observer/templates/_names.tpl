{{- define "observer.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "observer.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "observer.name" .) | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- /* What selects its pods; never changes over the life of a release. */ -}}
{{- define "observer.selector" -}}
app.kubernetes.io/name: {{ include "observer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "observer.labels" -}}
{{ include "observer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "observer.serviceAccount" -}}
{{ default (ternary (include "observer.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "observer.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}

{{- /* A cluster-wide name, so that two releases do not meet. */ -}}
{{- define "observer.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "observer.fullname" .) | trimPrefix "-" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "observer.resourceAttributes" -}}
{{- $all := deepCopy .Values.resourceAttributes -}}
{{- if not .Values.kubernetesApi.enabled -}}
{{- $_ := set $all "k8s.node.name" (get $all "k8s.node.name" | default "$(NODE_NAME)") -}}
{{- end -}}
{{- $pairs := list -}}
{{- range $key, $value := $all -}}
{{- $pairs = append $pairs (printf "%s=%v" $key $value) -}}
{{- end -}}
{{ join "," $pairs }}
{{- end }}

{{- /* Helm reads every number as a float; observer takes whole ones. */ -}}
{{- define "observer.toml" -}}
{{- $config := dict -}}
{{- range $key, $value := .Values.config -}}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) -}}
{{- $_ := set $config $key (int64 $value) -}}
{{- else -}}
{{- $_ := set $config $key $value -}}
{{- end -}}
{{- end -}}
{{ toToml $config | trim }}
{{- end }}
