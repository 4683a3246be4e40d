package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Web are the options of a client that is a tab of a browser.
type Web struct {
	// Profile is the browser profile; tabs of one profile share a database and
	// the SDK's workers. Default: one of its own, by the client's name.
	Profile string
	// VFS names the SDK's file system for SQLite; the SDK's default is in IndexedDB.
	VFS string
}

// StartWebDriver starts a browser whose tabs are the clients; it ends with the
// test. A missing browser is installed where possible, and else fails the test.
func StartWebDriver(t testing.TB, dir string) *Driver {
	t.Helper()
	if err := web(); err != nil {
		t.Fatal(err)
	}
	browser, err := script(t, nil, nil, "chromium")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", filepath.Join(Repo(), "e2e", "web", "driver.mjs"))
	cmd.Env = append(os.Environ(), "SLUICE_CHROMIUM="+strings.TrimSpace(browser))
	return startDriver(t, dir, nil, cmd)
}

// Offline unplugs the network of the tab's whole profile, or plugs it in again.
func (c *Client) Offline(offline bool) {
	c.driver.t.Helper()
	c.call("offline", map[string]any{"offline": offline}, nil, 10*time.Second)
}

// SignOut disconnects and removes all data, as an app does when its user leaves.
func (c *Client) SignOut() {
	c.driver.t.Helper()
	c.call("sign_out", nil, nil, 30*time.Second)
}

// Sample is the download progress at one moment, as the app's status listener saw it.
type Sample struct {
	Downloaded int            `json:"downloaded"`
	Total      int            `json:"total"`
	Fraction   float64        `json:"fraction"`
	Streams    []StreamStatus `json:"streams"`
}

// Progress returns the samples since the last call.
func (c *Client) Progress() []Sample {
	c.driver.t.Helper()
	var samples []Sample
	c.call("progress", nil, &samples, 10*time.Second)
	return samples
}
