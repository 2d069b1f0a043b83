{{- /* Values that contradict each other are refused here, each with what to change. */ -}}
{{- define "t6d.validate" -}}
{{- $v := .Values }}
{{- $needed := include "t6d.drainSeconds" . | int }}
{{- $given := include "t6d.terminationGracePeriodSeconds" . | int }}
{{- if lt $given $needed }}
{{- fail (printf "terminationGracePeriodSeconds is %d, but drain.preStopSeconds %d + drain.graceSeconds %d + drain.deadlineSeconds %d + 5 to stop are %d: running requests would be killed. Raise it, leave it null, or shorten the drain." $given (int $v.drain.preStopSeconds) (int $v.drain.graceSeconds) (int $v.drain.deadlineSeconds) $needed) }}
{{- end }}
{{- range $name, $_ := $v.flags }}
{{- if has $name (list "model" "http" "grpc" "admin" "api-key-file" "served-model-name" "drain-grace" "drain-deadline" "config" "port-file" "plan" "help" "version") }}
{{- fail (printf "flags.%s is set by the chart: use model, listen, ports, apiKeys or drain instead" $name) }}
{{- end }}
{{- end }}
{{- if and (hasKey $v.flags "device") (gt (int $v.gpu.count) 0) }}
{{- fail "flags.device contradicts gpu.count, which sets --device cuda: leave one of them out" }}
{{- end }}
{{- if and (eq $v.model.source "emptyDir") (not $v.model.init.image) }}
{{- fail "model.source is emptyDir, and model.init.image is empty: nothing would fill the volume. Set model.init, or model.source to claim or image." }}
{{- end }}
{{- if and (eq $v.model.source "image") $v.model.init.image }}
{{- fail "model.source is image, so there is no volume for model.init to fill: leave model.init.image empty" }}
{{- end }}
{{- if and (eq $v.model.source "claim") $v.model.init.image (not (or (has "ReadWriteMany" $v.model.claim.accessModes) (has "ReadWriteOnce" $v.model.claim.accessModes))) }}
{{- fail "model.init cannot write into a claim whose accessModes are read-only: add ReadWriteMany or ReadWriteOnce" }}
{{- end }}
{{- if and $v.apiKeys.existingSecret $v.apiKeys.lines }}
{{- fail "apiKeys.existingSecret and apiKeys.lines are both set: use one" }}
{{- end }}
{{- $least := ternary (int $v.autoscaling.minReplicas) (int $v.replicaCount) $v.autoscaling.enabled }}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas %d is above autoscaling.maxReplicas %d" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}
{{- end }}
{{- if and $v.podDisruptionBudget.enabled (kindIs "float64" $v.podDisruptionBudget.minAvailable) (ge (int $v.podDisruptionBudget.minAvailable) $least) }}
{{- fail (printf "podDisruptionBudget.minAvailable %d with %d replicas lets no node be drained, ever: lower it or use maxUnavailable" (int $v.podDisruptionBudget.minAvailable) $least) }}
{{- end }}
{{- if and $v.networkPolicy.enabled $v.model.init.image (not $v.networkPolicy.egress) }}
{{- fail "networkPolicy allows no egress, so model.init could fetch nothing: name where it may go in networkPolicy.egress" }}
{{- end }}
{{- if and $v.inferencePool.enabled (not $v.inferencePool.endpointPicker.name) }}
{{- fail "inferencePool needs inferencePool.endpointPicker.name: the Service of the endpoint picker" }}
{{- end }}
{{- if and $v.inferencePool.httpRoute.enabled (not $v.inferencePool.enabled) }}
{{- fail "inferencePool.httpRoute routes to the pool: set inferencePool.enabled too" }}
{{- end }}
{{- if and $v.inferencePool.httpRoute.enabled (not $v.inferencePool.httpRoute.parentRefs) }}
{{- fail "inferencePool.httpRoute needs parentRefs: the Gateway that it hangs on" }}
{{- end }}
{{- $ports := list (int $v.ports.http) (int $v.ports.grpc) }}
{{- if $v.ports.adminEnabled }}{{- $ports = append $ports (int $v.ports.admin) }}{{- end }}
{{- if ne (len (uniq $ports)) (len $ports) }}
{{- fail (printf "ports %v: two of them are the same" $ports) }}
{{- end }}
{{- end }}
