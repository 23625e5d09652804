package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// runningGRPC deploys the gRPC application, which speaks HTTP/2 without TLS.
func (s *server) runningGRPC() {
	s.t.Helper()
	path := filepath.Join(s.dir, "grpcapp")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./grpcapp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("building: %v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	id := s.service("grpc", object{"protocol": "h2c", "health_check": object{"type": "tcp"}})
	s.healthy(s.deployFiles(id, files{"Dockerfile": dockerfile, "app": string(program)}))
}

func testGRPC(t *testing.T, e *edge) {
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///grpc.localhost:%d", e.https),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: e.roots})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", e.https))
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	piece := func(size int) *pb.Payload { return &pb.Payload{Body: bytes.Repeat([]byte("x"), size)} }

	t.Run("unary", func(t *testing.T) {
		var header, trailer metadata.MD
		reply, err := client.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-sent", "a"),
			&pb.SimpleRequest{ResponseSize: 300_000, Payload: piece(270_000)}, grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(reply.GetPayload().GetBody()); n != 300_000 {
			t.Errorf("%d bytes", n)
		}
		if fmt.Sprint(header.Get("x-header")) != "[a]" || fmt.Sprintf("%q", trailer.Get("x-trailer-bin")) != `["\x00\xff"]` {
			t.Errorf("header %v, trailer %v", header, trailer)
		}
	})
	t.Run("status", func(t *testing.T) {
		const message = "no, \t%\u00fc\u2603"
		_, err := client.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.FailedPrecondition), Message: message}})
		if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != message {
			t.Errorf("got %v", err)
		}
		_, err = client.UnimplementedCall(ctx, &pb.Empty{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the server streams", func(t *testing.T) {
		sizes := []int32{1, 30_000, 0, 100_000}
		var wanted []*pb.ResponseParameters
		for _, size := range sizes {
			wanted = append(wanted, &pb.ResponseParameters{Size: size})
		}
		stream, err := client.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{ResponseParameters: wanted})
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range sizes {
			if p, err := stream.Recv(); err != nil || len(p.GetPayload().GetBody()) != int(size) {
				t.Fatalf("got %d bytes, %v; want %d", len(p.GetPayload().GetBody()), err, size)
			}
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("the end is %v", err)
		}
	})
	t.Run("the client streams", func(t *testing.T) {
		stream, err := client.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if err := stream.Send(&pb.StreamingInputCallRequest{Payload: piece(50_000)}); err != nil {
				t.Fatal(err)
			}
		}
		if reply, err := stream.CloseAndRecv(); err != nil || reply.GetAggregatedPayloadSize() != 1_000_000 {
			t.Errorf("got %v, %v", reply, err)
		}
	})
	t.Run("both stream", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 0, 50_000} {
			if err := stream.Send(&pb.StreamingOutputCallRequest{Payload: piece(size)}); err != nil {
				t.Fatal(err)
			}
			if p, err := stream.Recv(); err != nil || len(p.GetPayload().GetBody()) != size {
				t.Fatalf("got %d bytes, %v; want %d", len(p.GetPayload().GetBody()), err, size)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
			t.Errorf("the end is %v", err)
		}
	})
	t.Run("the server ends first", func(t *testing.T) {
		for _, before := range []int{0, 2} {
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			stream, err := client.FullDuplexCall(short)
			if err != nil {
				t.Fatal(err)
			}
			for range before {
				if err := stream.Send(&pb.StreamingOutputCallRequest{Payload: piece(10)}); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			if err := stream.Send(&pb.StreamingOutputCallRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.ResourceExhausted), Message: "enough"}}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != "enough" {
				t.Errorf("after %d messages: %v", before, err)
			}
		}
	})
	t.Run("deadline", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		stream, err := client.FullDuplexCall(short)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
	})
}
