{{- define "ballast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 30 | trimSuffix "-" }}
{{- end }}

{{- define "ballast.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 30 | trimSuffix "-" }}
{{- else if contains (include "ballast.name" .) .Release.Name }}{{ .Release.Name | trunc 30 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name (include "ballast.name" .) | trunc 30 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels by which pods are selected: never changed, for selectors cannot be. */}}
{{- define "ballast.selector" -}}
app.kubernetes.io/name: {{ include "ballast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ballast.labels" -}}
{{ include "ballast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* A group with what `workers` says for all. Call with (dict "root" $ "group" GROUP); result is YAML. */}}
{{- define "ballast.group" -}}
{{- mergeOverwrite (deepCopy .root.Values.workers) (deepCopy .group) | toYaml }}
{{- end }}

{{/* Call with (dict "root" $ "program" PROGRAM). */}}
{{- define "ballast.image" -}}
{{- $image := .root.Values.image -}}
{{- if $image.registry }}{{ $image.registry }}/{{ end }}ballast-{{ .program }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- with get $image.digests .program }}@{{ . }}{{ end }}
{{- end }}

{{- define "ballast.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "ballast.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "ballast.controllerHost" -}}
{{ include "ballast.fullname" . }}-controller.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "ballast.groupSecret" -}}
{{ default (printf "%s-group" (include "ballast.fullname" .)) .Values.groupSecret.existingSecret }}
{{- end }}

{{- define "ballast.tls" -}}
{{ if ne .Values.tls.mode "none" }}true{{ end }}
{{- end }}

{{/* Secret with the certificate of "controller", "worker", "viewer" or "operator": (dict "root" $ "of" OF). */}}
{{- define "ballast.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "secrets" }}{{ get .root.Values.tls.secrets .of }}
{{- else }}{{ include "ballast.fullname" .root }}-{{ .of }}-tls
{{- end }}
{{- end }}

{{- define "ballast.tlsArgs" -}}
- --tls-cert=/etc/ballast/tls/tls.crt
- --tls-key=/etc/ballast/tls/tls.key
- --tls-ca=/etc/ballast/tls/ca.crt
{{- end }}

{{/* Over mutual TLS the kubelet cannot ask, so ballastctl does, in the pod: (dict "root" $ "port" PORT "service" SERVICE "name" NAME),
     NAME being one that the server's certificate bears. */}}
{{- define "ballast.probe" -}}
{{- if include "ballast.tls" .root }}
exec:
  command:
    - /usr/bin/ballastctl
    {{- include "ballast.tlsArgs" . | nindent 4 }}
    - --tls-server-name={{ .name }}
    - health
    - 127.0.0.1:{{ .port }}
    {{- if .service }}
    - --service={{ .service }}
    {{- end }}
timeoutSeconds: 10
{{- else }}
grpc:
  port: {{ .port }}
  {{- if .service }}
  service: {{ .service }}
  {{- end }}
timeoutSeconds: 5
{{- end }}
{{- end }}

{{/* The metrics port asks for no certificate: one that is bad or out of time must not end pods that serve by connections that they have. */}}
{{- define "ballast.liveness" -}}
httpGet: {path: /metrics, port: metrics}
timeoutSeconds: 10
periodSeconds: 20
failureThreshold: 6
{{- end }}

{{- define "ballast.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "ballast.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The pods of a group: (dict "root" $ "group" GROUP), GROUP with all values. */}}
{{- define "ballast.workerPod" -}}
{{- $root := .root }}
{{- $g := .group }}
{{- $set := printf "%s-%s" (include "ballast.fullname" $root) $g.name }}
{{- $service := printf "%s-api.%s.svc" $set $root.Release.Namespace }}
{{- $cuda := eq $g.device "cuda" }}
metadata:
  labels:
    {{- include "ballast.selector" $root | nindent 4 }}
    app.kubernetes.io/component: worker
    ballast/group: {{ $g.name }}
  annotations:
    checksum/config: {{ $g.config | toYaml | sha256sum }}
    kubectl.kubernetes.io/default-container: worker
    {{- with $g.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "ballast.serviceAccount" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Beyond --drain-timeout, so that a worker that moves its experts away is not killed meanwhile.
  terminationGracePeriodSeconds: {{ add $g.drainTimeoutSeconds 30 }}
  securityContext: {{- include "ballast.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $g.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $g.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $g.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $g.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $cuda }}
  hostIPC: true
  affinity:
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "ballast.selector" $root | nindent 14 }}
              ballast/group: {{ $g.name }}
  {{- else if ne $g.spread "none" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: {{ $g.topologyKey }}
      whenUnsatisfiable: {{ eq $g.spread "hard" | ternary "DoNotSchedule" "ScheduleAnyway" }}
      labelSelector:
        matchLabels:
          {{- include "ballast.selector" $root | nindent 10 }}
          ballast/group: {{ $g.name }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "ballast.image" (dict "root" $root "program" ($cuda | ternary "worker-cuda" "worker")) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [/usr/bin/ballast-worker]
      args:
        - --config=/etc/ballast/config/config.yaml
        - --model=/model
        - --model-name={{ default $g.name $g.model.name }}
        - --controller={{ include "ballast.controllerHost" $root }}:7070
        - --group={{ $g.name }}
        - --role={{ $g.role | default "mixed" }}
        - --name=$(POD_NAME)
        - --node=$(NODE_NAME)
        - --listen=0.0.0.0:7080
        - --metrics-listen=0.0.0.0:7081
        - --data-listen=0.0.0.0:7082
        - --advertise-host=$(POD_NAME).{{ $set }}.{{ $root.Release.Namespace }}.svc
        - --group-secret-file=/etc/ballast/group/group.secret
        {{- if include "ballast.tls" $root }}
        {{- include "ballast.tlsArgs" $root | nindent 8 }}
        {{- else }}
        - --allow-insecure
        {{- end }}
        {{- if $cuda }}
        - --device=cuda
        {{- end }}
        {{- with $g.slots }}
        - --slots={{ . }}
        {{- end }}
        - --combine={{ $g.combine }}
        - --compute-threads={{ $g.computeThreads }}
        - --drain-timeout={{ $g.drainTimeoutSeconds }}
        - --log-format={{ $g.logFormat }}
        - --log-level={{ $g.logLevel }}
      env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: NODE_NAME
          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
        {{- if $cuda }}
        # NCCL takes processes for being on one host by this; pods have names of their own.
        - name: NCCL_HOSTID
          value: $(NODE_NAME)
        {{- end }}
        {{- with $g.env }}{{ toYaml . | nindent 8 }}{{ end }}
      ports:
        - {name: grpc, containerPort: 7080}
        - {name: metrics, containerPort: 7081}
        - {name: data, containerPort: 7082}
      startupProbe:
        {{- include "ballast.probe" (dict "root" $root "port" 7080 "service" "" "name" $service) | nindent 8 }}
        periodSeconds: 5
        failureThreshold: {{ div (add $g.startupSeconds 4) 5 }}
      livenessProbe:
        {{- include "ballast.liveness" . | nindent 8 }}
      readinessProbe:
        {{- include "ballast.probe" (dict "root" $root "port" 7080 "service" "ballast.v1.Inference" "name" $service) | nindent 8 }}
        periodSeconds: 5
      resources:
        {{- $resources := deepCopy $g.resources }}
        {{- if $cuda }}
        {{- $resources = mergeOverwrite $resources (dict "limits" (dict $g.gpuResource 1)) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext: {{- include "ballast.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/ballast/config, readOnly: true}
        - {name: group-secret, mountPath: /etc/ballast/group, readOnly: true}
        - name: model
          mountPath: /model
          readOnly: true
          {{- with $g.model.subPath }}
          subPath: {{ . }}
          {{- end }}
        - {name: tmp, mountPath: /tmp}
        {{- if include "ballast.tls" $root }}
        - {name: tls, mountPath: /etc/ballast/tls, readOnly: true}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ $set }}}
    - name: group-secret
      secret: {secretName: {{ include "ballast.groupSecret" $root }}, defaultMode: 0440}
    - name: model
      {{- if $g.model.claim }}
      persistentVolumeClaim: {claimName: {{ $g.model.claim }}, readOnly: true}
      {{- else }}
      hostPath: {path: {{ $g.model.hostPath }}, type: Directory}
      {{- end }}
    - name: tmp
      emptyDir: {}
    {{- if include "ballast.tls" $root }}
    - name: tls
      secret: {secretName: {{ include "ballast.tlsSecret" (dict "root" $root "of" "worker") }}, defaultMode: 0440}
    {{- end }}
{{- end }}
