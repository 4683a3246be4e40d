package auth

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// supabase is what is configured of Supabase Auth.
type supabase struct {
	on      bool
	secret  bool   // a shared secret is configured
	project string // whose keys are fetched; "" = none's
}

func newSupabase(c config.Auth) supabase {
	return supabase{on: c.Supabase, secret: c.SupabaseSecret != "", project: project(c.SupabaseJWKS)}
}

// project is the one whose host a URL of Supabase names, or "".
func project(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	name, ok := strings.CutSuffix(u.Hostname(), ".supabase.co")
	if !ok {
		return ""
	}
	return name
}

// explain adds to err, of a token for which no key was good, what a token of
// Supabase's lacks here (spec/06 §5.4). Only the log names the projects.
func (s supabase) explain(err error, alg string, issuer any) error {
	var e *errs.Error
	iss, _ := issuer.(string)
	if !errors.As(err, &e) || e.Code != errs.S2101 || iss != "supabase" && !strings.HasSuffix(iss, "/auth/v1") {
		return err
	}
	of, shared := project(iss), families[alg] == "oct"
	var hint string
	cause := e.Err
	switch {
	case !s.on:
		hint = "The token is Supabase's, and Supabase Auth is not enabled: set client_auth.supabase"
	case of != "" && s.project != "" && of != s.project:
		hint = "The token is of another Supabase project than the one that is configured"
		cause = fmt.Errorf("the token is of project %s, the source's is %s", clip(of), s.project)
	case shared && !s.secret:
		hint = "The token is signed with the Supabase project's shared secret, which is not configured: set client_auth.supabase_jwt_secret"
	case shared:
		hint = "The token is signed with a Supabase project's shared secret, which is not the one in client_auth.supabase_jwt_secret"
	case s.project == "":
		hint = "The token is signed with a key of the Supabase project, and the project is not known from the source's address: set client_auth.jwks_uri"
	default:
		return err
	}
	return &errs.Error{Code: e.Code, Msg: e.Msg + ". " + hint, Retry: e.Retry, Err: cause}
}
