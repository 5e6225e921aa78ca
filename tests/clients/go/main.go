// One call with a service config: go-client TARGET METHOD HEX CONFIG_FILE SECONDS.
// It prints the name of the status.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health"
	"google.golang.org/grpc/status"
)

// plain sends and receives bytes as they are.
type plain struct{}

func (plain) Name() string { return "proto" }

func (plain) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }

func (plain) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = append([]byte{}, data...)
	return nil
}

func main() {
	target, method, config := os.Args[1], os.Args[2], os.Args[4]
	request, err := hex.DecodeString(os.Args[3])
	check(err)
	text, err := os.ReadFile(config)
	check(err)
	seconds, err := strconv.Atoi(os.Args[5])
	check(err)
	connection, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(text)))
	check(err)
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	var answer []byte
	err = connection.Invoke(ctx, method, &request, &answer, grpc.ForceCodec(plain{}))
	fmt.Println(status.Code(err))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
