package errs

import "net/http"

// Code is the stable text of a failure, PSYNC_<letter><4 digits> (spec/06 §9).
// It is a public contract: codes are added, never renumbered. Codes from S9000
// on are Sluice's own.
type Code string

const (
	R0001 Code = "PSYNC_R0001" // sync config does not parse or compile
	R2201 Code = "PSYNC_R2201" // table wildcards are not supported for this source
	S0001 Code = "PSYNC_S0001" // internal assertion
	S0102 Code = "PSYNC_S0102" // teardown not acknowledged
	S1002 Code = "PSYNC_S1002" // row too large, not replicated
	S1003 Code = "PSYNC_S1003" // stream is locked by another process
	S1004 Code = "PSYNC_S1004" // JSON nested too deep
	S1005 Code = "PSYNC_S1005" // unsupported storage version
	S1101 Code = "PSYNC_S1101" // replication assertion
	S1103 Code = "PSYNC_S1103" // replication aborted by shutdown or restart
	S1104 Code = "PSYNC_S1104" // cacert missing
	S1105 Code = "PSYNC_S1105" // database missing
	S1106 Code = "PSYNC_S1106" // hostname missing
	S1107 Code = "PSYNC_S1107" // username missing
	S1108 Code = "PSYNC_S1108" // password missing
	S1109 Code = "PSYNC_S1109" // bad URI or connection option
	S1110 Code = "PSYNC_S1110" // bad port
	S1120 Code = "PSYNC_S1120" // source query failed
	S1121 Code = "PSYNC_S1121" // socket timeout at the source
	S1141 Code = "PSYNC_S1141" // publication missing
	S1142 Code = "PSYNC_S1142" // publication lacks insert, update, delete or truncate
	S1143 Code = "PSYNC_S1143" // publish_via_partition_root is not supported
	S1144 Code = "PSYNC_S1144" // storage and source on one Postgres server need 14
	S1145 Code = "PSYNC_S1145" // row-level security may hide rows
	S1146 Code = "PSYNC_S1146" // replication slot invalidated or missing
	S1301 Code = "PSYNC_S1301" // MongoDB, generic
	S1302 Code = "PSYNC_S1302" // MongoDB network
	S1303 Code = "PSYNC_S1303" // MongoDB TLS
	S1304 Code = "PSYNC_S1304" // MongoDB DNS
	S1305 Code = "PSYNC_S1305" // MongoDB connect timeout
	S1306 Code = "PSYNC_S1306" // MongoDB authentication
	S1307 Code = "PSYNC_S1307" // MongoDB privileges
	S1341 Code = "PSYNC_S1341" // MongoDB sharded clusters are not supported
	S1342 Code = "PSYNC_S1342" // MongoDB standalone servers are not supported
	S1343 Code = "PSYNC_S1343" // MongoDB post-images are not enabled
	S1344 Code = "PSYNC_S1344" // MongoDB change stream invalidated
	S1345 Code = "PSYNC_S1345" // MongoDB change stream timeout
	S1346 Code = "PSYNC_S1346" // MongoDB change stream read failure
	S1347 Code = "PSYNC_S1347" // timeout while waiting for the snapshot position
	S1402 Code = "PSYNC_S1402" // storage transaction retried too often
	S1500 Code = "PSYNC_S1500" // CDC or binlog history expired
	S1601 Code = "PSYNC_S1601" // pinned capture instance is gone
	S1602 Code = "PSYNC_S1602" // table is not CDC-enabled yet
	S1603 Code = "PSYNC_S1603" // replicated table dropped, renamed or of another identity
	S1604 Code = "PSYNC_S1604" // conflicting TLS options
	S2001 Code = "PSYNC_S2001" // validation failed (400); an unexpected error has S2001 with 500
	S2002 Code = "PSYNC_S2002" // route not found
	S2003 Code = "PSYNC_S2003" // service unavailable, restarting
	S2004 Code = "PSYNC_S2004" // unsupported media type
	S2101 Code = "PSYNC_S2101" // authentication failed
	S2102 Code = "PSYNC_S2102" // signature could not be verified
	S2103 Code = "PSYNC_S2103" // token expired
	S2104 Code = "PSYNC_S2104" // token lifetime too long
	S2105 Code = "PSYNC_S2105" // audience
	S2106 Code = "PSYNC_S2106" // no token
	S2201 Code = "PSYNC_S2201" // auth configuration
	S2202 Code = "PSYNC_S2202" // IPv6 is not allowed for JWKS
	S2203 Code = "PSYNC_S2203" // IP range rejected
	S2204 Code = "PSYNC_S2204" // JWKS request failed
	S2302 Code = "PSYNC_S2302" // no active sync config
	S2304 Code = "PSYNC_S2304" // too many connections
	S2305 Code = "PSYNC_S2305" // too many buckets or parameter results
	S2401 Code = "PSYNC_S2401" // storage gave no cluster time
	S2402 Code = "PSYNC_S2402" // storage connection failed
	S2403 Code = "PSYNC_S2403" // storage timeout
	S2404 Code = "PSYNC_S2404" // storage query failed
	S3102 Code = "PSYNC_S3102" // jwks_uri invalid
	S3103 Code = "PSYNC_S3103" // jwks_uri scheme
	S3201 Code = "PSYNC_S3201" // module configuration invalid
	S4001 Code = "PSYNC_S4001" // management assertion
	S4104 Code = "PSYNC_S4104" // no active sync config
	S4105 Code = "PSYNC_S4105" // sync config API disabled
	S4106 Code = "PSYNC_S4106" // busy: another config is deploying

	// S9001: the service config does not parse or misses something.
	S9001 Code = "PSYNC_S9001"
	// S9002: a batch on the way through the pipeline cannot be decoded.
	S9002 Code = "PSYNC_S9002"
	// S9003: the pipeline is stale: a stage has not moved for too long.
	S9003 Code = "PSYNC_S9003"
	// S9010: the certificate, its key or the CA of TLS between services cannot
	// be used.
	S9010 Code = "PSYNC_S9010"
	// S9011: a service has called what its role may not call.
	S9011 Code = "PSYNC_S9011"
	// S9012: a service of an older version does not know a call.
	S9012 Code = "PSYNC_S9012"
	// S9020: the scopes of an admin token do not allow what was asked.
	S9020 Code = "PSYNC_S9020"
)

// HTTPStatus is the status with which a failure of code leaves over HTTP.
func HTTPStatus(code Code) int {
	switch code {
	case S2001, S0102:
		return http.StatusBadRequest
	case S9020:
		return http.StatusForbidden
	case S2002:
		return http.StatusNotFound
	case S2003:
		return http.StatusServiceUnavailable
	case S2004:
		return http.StatusUnsupportedMediaType
	case S9012:
		return http.StatusNotImplemented
	case S2101, S2102, S2103, S2104, S2105, S2106, S2202, S2203, S2204:
		return http.StatusUnauthorized
	case S2304:
		return http.StatusTooManyRequests
	case R0001, S4104, S4105:
		return http.StatusUnprocessableEntity
	case S4106:
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}
