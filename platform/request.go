package platform

// DeployRequest asks for a deployment of a service.
type DeployRequest struct {
	ServiceID ID
	Source    *Source // nil: the service's own
	Trigger   string  // one of the Trigger constants
	Actor     string  // who asks, for the record
}
