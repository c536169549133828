package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// docker speaks the Docker Engine HTTP API (https://docs.docker.com/reference/api/engine/) over a unix socket. Paths
// carry no version: the engine then takes its own newest, in which all that is used here has been stable for years.
type docker struct {
	socket string
	http   *http.Client
}

const defaultSocket = "/var/run/docker.sock"

func newDocker(host string) (*docker, error) {
	socket := defaultSocket
	if host != "" {
		path, isUnix := strings.CutPrefix(host, "unix://")
		if !isUnix {
			return nil, fmt.Errorf("docker.host is %q; this stand-in knows only unix://", host)
		}
		socket = path
	}
	d := &docker{socket: socket}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx) }
	d.http = &http.Client{Transport: &http.Transport{DialContext: dial}}
	return d, nil
}

func (d *docker) dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", d.socket)
}

type dockerError struct {
	status  int
	message string
}

func (e *dockerError) Error() string {
	return fmt.Sprintf("docker: %s", e.message)
}

func isNotFound(err error) bool {
	var failed *dockerError
	return errors.As(err, &failed) && failed.status == http.StatusNotFound
}

// call sends in as JSON, if it is not nil, and decodes the answer into out, if that is not nil.
func (d *docker) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	response, err := d.do(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(out)
}

func (d *docker) do(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		encoded, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := d.http.Do(request)
	if err != nil {
		return nil, err
	}
	return checked(response)
}

func checked(response *http.Response) (*http.Response, error) {
	if response.StatusCode < http.StatusBadRequest {
		return response, nil
	}
	defer response.Body.Close()
	var answer struct {
		Message string `json:"message"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Message == "" {
		answer.Message = response.Status
	}
	return nil, &dockerError{response.StatusCode, answer.Message}
}

func (d *docker) hasImage(ctx context.Context, image string) (bool, error) {
	err := d.call(ctx, "GET", "/images/"+image+"/json", nil, nil, nil)
	if isNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (d *docker) pull(ctx context.Context, image string) error {
	name, tag := image, "latest"
	if at := strings.LastIndexAny(image, ":@"); at > strings.LastIndex(image, "/") {
		name, tag = image[:at], image[at+1:]
	}
	response, err := d.do(ctx, "POST", "/images/create", url.Values{"fromImage": {name}, "tag": {tag}}, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// The status comes before the work: how it went is in the stream.
	progress := json.NewDecoder(response.Body)
	for {
		var line struct {
			Error string `json:"error"`
		}
		switch err := progress.Decode(&line); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case line.Error != "":
			return &dockerError{http.StatusInternalServerError, line.Error}
		}
	}
}

func (d *docker) createNetwork(ctx context.Context, specification map[string]any) error {
	return d.call(ctx, "POST", "/networks/create", nil, specification, nil)
}

func (d *docker) removeNetwork(ctx context.Context, name string) error {
	return d.call(ctx, "DELETE", "/networks/"+name, nil, nil, nil)
}

func (d *docker) createVolume(ctx context.Context, name string, labels map[string]string) error {
	return d.call(ctx, "POST", "/volumes/create", nil, map[string]any{"Name": name, "Labels": labels}, nil)
}

func (d *docker) removeVolume(ctx context.Context, name string) error {
	return d.call(ctx, "DELETE", "/volumes/"+name, url.Values{"force": {"true"}}, nil, nil)
}

func (d *docker) createContainer(ctx context.Context, name string, specification map[string]any) error {
	return d.call(ctx, "POST", "/containers/create", url.Values{"name": {name}}, specification, nil)
}

func (d *docker) startContainer(ctx context.Context, name string) error {
	return d.call(ctx, "POST", "/containers/"+name+"/start", nil, nil, nil)
}

// removeContainer ends the container at once and removes it with its anonymous volumes.
func (d *docker) removeContainer(ctx context.Context, name string) error {
	return d.call(ctx, "DELETE", "/containers/"+name, url.Values{"force": {"true"}, "v": {"true"}}, nil, nil)
}

// wait returns the exit code of the container when it has ended.
func (d *docker) wait(ctx context.Context, name string) (int, error) {
	var ended struct {
		StatusCode int `json:"StatusCode"`
	}
	err := d.call(ctx, "POST", "/containers/"+name+"/wait", nil, nil, &ended)
	return ended.StatusCode, err
}

// attach opens a container's standard input (written to the connection) and its output, to be read with demultiplex.
func (d *docker) attach(ctx context.Context, name string) (*net.UnixConn, *bufio.Reader, error) {
	connection, err := d.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	streams := url.Values{"stream": {"1"}, "stdin": {"1"}, "stdout": {"1"}, "stderr": {"1"}}
	request, err := http.NewRequest("POST", "http://docker/containers/"+name+"/attach?"+streams.Encode(), nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "tcp")
	if err := request.Write(connection); err != nil {
		connection.Close()
		return nil, nil, err
	}
	reader := bufio.NewReader(connection)
	response, err := http.ReadResponse(reader, request)
	if err == nil {
		_, err = checked(response)
	}
	if err != nil {
		connection.Close()
		return nil, nil, err
	}
	return connection.(*net.UnixConn), reader, nil
}

// demultiplex copies both output streams of a container without a terminal: frames of a kind, three zeros, a
// big-endian length and as many bytes.
func demultiplex(out io.Writer, in io.Reader) error {
	header := make([]byte, 8)
	for {
		if _, err := io.ReadFull(in, header); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, int64(binary.BigEndian.Uint32(header[4:]))); err != nil {
			return err
		}
	}
}
