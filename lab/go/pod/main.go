// Pod is what the lab's container images run: `pod pause`, `pod app` or `pod target`.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: pod pause | app [flags] | target [flags]")
	}
	// As process 1 of a container it would ignore a signal that it does not ask for.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	switch os.Args[1] {
	case "pause":
	case "app":
		ports := flags.String("ports", "8080", "TCP ports to serve HTTP on, with commas between")
		flags.Parse(os.Args[2:])
		for _, port := range strings.Split(*ports, ",") {
			go func() { log.Fatal(http.ListenAndServe(":"+port, app())) }()
		}
	case "target":
		port := flags.String("port", "7777", "TCP and UDP port to echo on")
		flags.Parse(os.Args[2:])
		go echoTCP(":" + *port)
		go echoUDP(":" + *port)
	default:
		log.Fatalf("pod: no program %q", os.Args[1])
	}
	<-ended
}

// app answers any path with who it is and who asked, /health with ok. ?ms=N waits first, ?bytes=N answers with N bytes.
func app() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Duration(number(r, "ms")) * time.Millisecond)
		if n := number(r, "bytes"); n > 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
			io.CopyN(w, letters{}, n)
			return
		}
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{
			"pod": hostname(), "node": os.Getenv("NODE_NAME"), "client": client,
			"host": r.Host, "path": r.URL.Path, "forwarded_for": r.Header.Get("X-Forwarded-For"),
		})
	})
	return mux
}

func number(r *http.Request, name string) int64 {
	n, _ := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
	return n
}

func hostname() string {
	if name := os.Getenv("POD_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname()
	return name
}

type letters struct{}

func (letters) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'n'
	}
	return len(b), nil
}

func echoTCP(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}

func echoUDP(address string) {
	socket, err := net.ListenPacket("udp", address)
	if err != nil {
		log.Fatal(err)
	}
	buffer := make([]byte, 65536)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if err != nil {
			log.Fatal(err)
		}
		socket.WriteTo(buffer[:n], from)
	}
}
