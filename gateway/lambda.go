package gateway

import (
	"net/http"

	"lode"
)

func (g *Gateway) serveLambda(w http.ResponseWriter, r *http.Request, local bool) {
	g.refuse(w, r, lode.Errorf(lode.Unavailable, "soon"))
}
