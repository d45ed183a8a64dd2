{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- /* The release's name where that says it already, otherwise release and chart. It names the Lease too. */ -}}
{{- define "finetune-operator.fullname" -}}
{{- $name := include "finetune-operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* An image by digest, or by tag. Of (dict "image" VALUES "version" APPVERSION). */ -}}
{{- define "finetune-operator.image" -}}
{{- $tag := .image.tag -}}
{{- if and (not $tag) (not .image.digest) -}}
{{- $tag = .version -}}
{{- end -}}
{{- .image.repository -}}
{{- with $tag }}:{{ . }}{{ end -}}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "finetune-operator.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "finetune-operator.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end -}}

{{- /* Rules of operator/rbac.yaml and, where they are asked for, of rbac-gang.yaml and rbac-network.yaml. */ -}}
{{- define "finetune-operator.rules" -}}
{{- $rules := (.Files.Get "files/rbac.yaml" | fromYaml).rules -}}
{{- if .Values.rbac.gangs -}}
{{- $rules = concat $rules (.Files.Get "files/rbac-gang.yaml" | fromYaml).rules -}}
{{- end -}}
{{- if .Values.networkPolicy.jobs.enabled -}}
{{- $rules = concat $rules (.Files.Get "files/rbac-network.yaml" | fromYaml).rules -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end -}}

{{- /* `policy` and `modelCache` as the operator reads them, without what restricts nothing; empty if that is all. */ -}}
{{- define "finetune-operator.policy" -}}
{{- $policy := dict -}}
{{- range $key, $value := omit .Values.policy "admission" "podDefaults" "trustedCa" "proxy" -}}
{{- if $value }}{{ $_ := set $policy $key $value }}{{ end -}}
{{- end -}}
{{- range $key := list "podDefaults" "proxy" -}}
{{- $part := dict -}}
{{- range $name, $value := get $.Values.policy $key -}}
{{- if $value }}{{ $_ := set $part $name $value }}{{ end -}}
{{- end -}}
{{- if $part }}{{ $_ := set $policy $key $part }}{{ end -}}
{{- end -}}
{{- with .Values.policy.trustedCa -}}
{{- if .configMap }}{{ $_ := set $policy "trustedCa" . }}{{ end -}}
{{- end -}}
{{- if .Values.modelCache.claim -}}
{{- $cache := dict "modelCache" (dict "claim" .Values.modelCache.claim "sizeGiB" .Values.modelCache.sizeGiB) -}}
{{- $own := dict -}}
{{- range .Values.modelCache.namespaces -}}
{{- $_ := set $own . $cache -}}
{{- end -}}
{{- if $own }}{{ $_ := set $policy "namespaces" (merge (deepCopy (get $policy "namespaces" | default dict)) $own) }}{{ else }}{{ $policy = merge $policy $cache }}{{ end -}}
{{- end -}}
{{- if $policy }}{{ toJson $policy }}{{ end -}}
{{- end -}}

{{- /* A number in decimals: Go would write 1000000 as 1e+06. */ -}}
{{- define "finetune-operator.number" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}
