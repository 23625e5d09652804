// Command grpcapp is the gRPC application the end-to-end tests deploy. It
// answers the calls of gRPC's own interoperability tests.
package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func main() {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", ":"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	pb.RegisterTestServiceServer(server, &service{})
	log.Fatal(server.Serve(l))
}

type service struct {
	pb.UnimplementedTestServiceServer
}

// UnaryCall answers with as many bytes as are asked for, or the status.
func (*service) UnaryCall(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if s := in.GetResponseStatus(); s.GetCode() != 0 {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	sent, _ := metadata.FromIncomingContext(ctx)
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer-bin", "\x00\xff")); err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, metadata.MD{"x-header": sent.Get("x-sent")}); err != nil {
		return nil, err
	}
	return &pb.SimpleResponse{Payload: &pb.Payload{Body: make([]byte, in.GetResponseSize())}}, nil
}

// StreamingOutputCall answers with pieces of the sizes asked for.
func (*service) StreamingOutputCall(in *pb.StreamingOutputCallRequest, out grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for _, p := range in.GetResponseParameters() {
		if err := out.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

// StreamingInputCall counts what it gets.
func (*service) StreamingInputCall(in grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	var sum int32
	for {
		piece, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: sum})
		}
		if err != nil {
			return err
		}
		sum += int32(len(piece.GetPayload().GetBody()))
	}
}

// FullDuplexCall answers each piece as it comes, or ends with the status it asks
// for.
func (*service) FullDuplexCall(both grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	for {
		piece, err := both.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.DataLoss, "the end") // which comes after pieces
		}
		if err != nil {
			return err
		}
		if s := piece.GetResponseStatus(); s.GetCode() != 0 {
			return status.Error(codes.Code(s.GetCode()), s.GetMessage())
		}
		if err := both.Send(&pb.StreamingOutputCallResponse{Payload: piece.GetPayload()}); err != nil {
			return err
		}
	}
}
