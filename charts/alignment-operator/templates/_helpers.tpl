{{- /* What serves one namespace, or with "" all of them: (list $ namespace). */ -}}
{{- define "alignment-operator.name" -}}
{{- $namespace := index . 1 -}}
{{ (index . 0).Release.Name }}{{ with $namespace }}-{{ . }}{{ end }}
{{- end }}

{{- define "alignment-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "alignment-operator.labels" -}}
{{ include "alignment-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The platform as given, with the operator itself among those that its jobs' pods let in. */ -}}
{{- define "alignment-operator.platform" -}}
{{- $own := dict
      "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace))
      "podSelector" (dict "matchLabels" (include "alignment-operator.selector" . | fromYaml)) -}}
{{- $peers := prepend (.Values.platform.ingressFrom | default list) $own -}}
{{- merge (dict "ingressFrom" $peers) .Values.platform | toYaml -}}
{{- end }}

{{/* CEL: whether `value` matches one of `patterns`, in which `*` stands for any characters. */}}
{{- define "alignment-operator.matches" -}}
{{- $value := .value -}}
({{ range .patterns }}{{ $value }}.matches({{ printf "^%s$" (regexQuoteMeta . | replace "\\*" ".*") | toJson }}) || {{ end }}false)
{{- end }}
