{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Selector of a component's pods: dict root, component. */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of a pod: dict root, component. Nothing that changes with the chart, or an update of
it would replace the pods. */}}
{{- define "sluice.podLabels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/part-of: sluice
{{- end -}}

{{/* Labels of an object: dict root, component. */}}
{{- define "sluice.labels" -}}
{{ include "sluice.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Metadata of an object: dict root, component, and name if it is not the component. */}}
{{- define "sluice.metadata" -}}
name: {{ include "sluice.fullname" .root }}-{{ default .component .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "sluice.labels" . | nindent 2 }}
{{- end -}}

{{/* The five, with what their values are called. */}}
{{- define "sluice.services" -}}
bucket-store: bucketStore
compactor: compactor
replicator: replicator
rules-evaluator: rulesEvaluator
sync-gateway: syncGateway
{{- end -}}

{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Nine tenths of a memory limit in Mi or Gi, as GOMEMLIMIT; nothing for another unit. */}}
{{- define "sluice.goMemory" -}}
{{- $limit := dig "limits" "memory" "" . | toString -}}
{{- if regexMatch "^[0-9]+Gi$" $limit -}}
{{- div (mul (trimSuffix "Gi" $limit | int) 1024 9) 10 }}MiB
{{- else if regexMatch "^[0-9]+Mi$" $limit -}}
{{- div (mul (trimSuffix "Mi" $limit | int) 9) 10 }}MiB
{{- end -}}
{{- end -}}

{{/* Whether the release has a config of its own, in a ConfigMap. */}}
{{- define "sluice.ownConfig" -}}
{{- if not .Values.config.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* The volume with powersync.yaml and sync-config.yaml. */}}
{{- define "sluice.configVolume" -}}
name: config
{{- if include "sluice.ownConfig" . }}
configMap:
  name: {{ include "sluice.fullname" . }}-config
{{- else }}
secret:
  secretName: {{ .Values.config.existingSecret }}
{{- end }}
{{- end -}}

{{/* Environment of every container that reads the config: dict root, component ("" for none of
the five). Whoever listens on an address has another value than those who look for it. */}}
{{- define "sluice.env" -}}
{{- $name := include "sluice.fullname" .root -}}
- name: SLUICE_DATA
  value: /data
{{- if eq .component "nats" }}
- name: SLUICE_NATS_URL
  value: nats://0.0.0.0:4222
{{- else if .root.Values.nats.enabled }}
- name: SLUICE_NATS_URL
  value: nats://{{ $name }}-nats:4222
{{- else if .root.Values.nats.url }}
- name: SLUICE_NATS_URL
  value: {{ .root.Values.nats.url | quote }}
{{- end }}
- name: SLUICE_BUCKET_STORE_ADDRESS
  value: {{ ternary "" (printf "%s-bucket-store" $name) (eq .component "bucket-store") }}:7441
{{- if and (eq .component "bucket-store") (ne .root.Values.bucketStore.backend "embedded") }}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: SLUICE_BUCKET_STORE_ADVERTISE # where the other bucket-stores find this one
  value: "[$(POD_IP)]:7441"
{{- end }}
- name: SLUICE_REPLICATOR_ADDRESS
  value: {{ ternary "" (printf "%s-replicator" $name) (eq .component "replicator") }}:7442
- name: SLUICE_COMPACTOR_ADDRESS
  value: {{ ternary "" (printf "%s-compactor" $name) (eq .component "compactor") }}:7443
{{- with .root.Values.mutualTLS.secretPrefix }}
{{- if ne $.component "migration" }}
- name: SLUICE_TLS_CA
  value: /etc/sluice-mutual-tls/ca.crt
- name: SLUICE_TLS_CERTIFICATE
  value: /etc/sluice-mutual-tls/tls.crt
- name: SLUICE_TLS_KEY
  value: /etc/sluice-mutual-tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{/* The volume of a service's certificate, and its mount: dict root, component. */}}
{{- define "sluice.mutualTLSVolume" -}}
{{- with .root.Values.mutualTLS.secretPrefix }}
- name: mutual-tls
  secret:
    secretName: {{ . }}{{ $.component }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "sluice.mutualTLSMount" -}}
{{- with .root.Values.mutualTLS.secretPrefix }}
- name: mutual-tls
  mountPath: /etc/sluice-mutual-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "sluice.envFrom" -}}
envFrom:{{ if not .Values.secrets.existingSecret }} []{{ end }}
  {{- with .Values.secrets.existingSecret }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end -}}

{{/* The pod of one of the five services: dict root, component, key (of its values). */}}
{{- define "sluice.pod" -}}
{{- $root := .root -}}
{{- $v := index .root.Values .key -}}
{{- $gateway := eq .component "sync-gateway" -}}
metadata:
  labels:
    {{- include "sluice.podLabels" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .component }}
    {{- if include "sluice.ownConfig" $root }}
    # Not of the sync config: a change of that is taken up by what runs.
    checksum/config: {{ $root.Values.config.powersync | sha256sum }}
    {{- end }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sluice.fullname" $root }}
  automountServiceAccountToken: false
  # The variables that Kubernetes makes of Services, such as SLUICE_GATEWAY_PORT, would be
  # taken for settings.
  enableServiceLinks: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- include "sluice.podSecurity" 65532 | nindent 4 }}
  {{- /* Draining, closing and the last push of telemetry take less than 15 s. */}}
  terminationGracePeriodSeconds: {{ ternary (add $v.preStopSeconds 40) 40 $gateway }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $root.Values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range (list "topology.kubernetes.io/zone" "kubernetes.io/hostname") }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sluice.selector" $ | nindent 10 }}
      {{- if not (and (eq $.component "bucket-store") (eq $v.backend "embedded")) }}
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "sluice.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [/{{ .component }}, --config, /etc/sluice/powersync.yaml]
      {{- include "sluice.envFrom" $root | nindent 6 }}
      env:
        {{- include "sluice.env" . | nindent 8 }}
        - name: SLUICE_{{ ternary "GATEWAY" (.component | replace "-" "_" | upper) $gateway }}_METRICS_PORT
          value: "9464"
        {{- if $gateway }}
        - name: SLUICE_GATEWAY_PORT
          value: "8080"
        {{- with $v.pathPrefix }}
        - name: SLUICE_GATEWAY_PATH_PREFIX
          value: {{ . }}
        {{- end }}
        {{- if $v.tls.existingSecret }}
        - name: SLUICE_GATEWAY_TLS_CERTIFICATE
          value: /etc/sluice-tls/tls.crt
        - name: SLUICE_GATEWAY_TLS_KEY
          value: /etc/sluice-tls/tls.key
        {{- end }}
        {{- end }}
        {{- with include "sluice.goMemory" $v.resources }}
        - name: GOMEMLIMIT
          value: {{ . }}
        {{- end }}
        {{- with $root.Values.opentelemetry.endpoint }}
        - name: OTEL_EXPORTER_OTLP_ENDPOINT
          value: {{ . | quote }}
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: OTEL_RESOURCE_ATTRIBUTES
          value: k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
        {{- end }}
        {{- with $v.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- if $gateway }}
        - name: clients
          containerPort: 8080
        {{- else if ne .component "rules-evaluator" }}
        - name: grpc
          containerPort: {{ index (dict "bucket-store" 7441 "replicator" 7442 "compactor" 7443) .component }}
        {{- end }}
        - name: private
          containerPort: 9464
      startupProbe:
        httpGet:
          path: /probes/startup
          port: private
        periodSeconds: 2
        {{- /* A store that was not closed reads its log first. */}}
        failureThreshold: {{ ternary 300 60 (eq .component "bucket-store") }}
      readinessProbe:
        httpGet:
          path: /probes/readiness
          port: private
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet:
          path: /probes/liveness
          port: private
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      {{- if and $gateway (gt (int $v.preStopSeconds) 0) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $v.preStopSeconds }}
      {{- end }}
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      securityContext:
        {{- include "sluice.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/sluice
          readOnly: true
        {{- if and (eq .component "bucket-store") (eq $v.backend "embedded") }}
        - name: data
          mountPath: /data
        {{- end }}
        {{- with include "sluice.mutualTLSMount" . }}
        {{- . | trim | nindent 8 }}
        {{- end }}
        {{- if and $gateway $v.tls.existingSecret }}
        - name: tls
          mountPath: /etc/sluice-tls
          readOnly: true
        {{- end }}
  volumes:
    - {{- include "sluice.configVolume" $root | nindent 6 }}
    {{- with include "sluice.mutualTLSVolume" . }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- if and $gateway $v.tls.existingSecret }}
    - name: tls
      secret:
        secretName: {{ $v.tls.existingSecret }}
        defaultMode: 0440
    {{- end }}
{{- end -}}

{{/* A claim for a volume called data: the values of its storage. */}}
{{- define "sluice.claim" -}}
metadata:
  name: data
spec:
  accessModes: [ReadWriteOnce]
  {{- with .storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .size }}
{{- end -}}
