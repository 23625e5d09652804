package api

import (
	"context"

	"github.com/denia-paas/denia/platform"
)

type user struct {
	ID         platform.ID `json:"id"`
	Name       string      `json:"name"`
	SuperAdmin bool        `json:"super_admin"`
	CreatedAt  timestamp   `json:"created_at"`
	UpdatedAt  timestamp   `json:"updated_at"`
}

func userView(u platform.User) user {
	return user{u.ID, u.Name, u.SuperAdmin, timestamp{u.CreatedAt}, timestamp{u.UpdatedAt}}
}

type usersInput struct{ Paging }

func (a *API) listUsers(ctx context.Context, in *usersInput) (*listing[user], error) {
	rows, next, err := a.Store.Users(ctx, in.page())
	if err != nil {
		return nil, err
	}
	return listed(callFrom(ctx), rows, next, userView), nil
}

// newUser checks credentials and hashes the password.
func (a *API) newUser(ctx context.Context, c credentials) (platform.User, error) {
	if c.user() == "" {
		return platform.User{}, platform.InvalidField("username", "required", "is required")
	}
	if err := platform.ValidateUserName(c.user()); err != nil {
		return platform.User{}, err
	}
	if err := platform.ValidatePassword(c.Password); err != nil {
		return platform.User{}, err
	}
	hash, err := a.hashPassword(ctx, c.Password)
	return platform.User{Name: c.user(), PasswordHash: hash}, err
}

func createdUser(ctx context.Context, u platform.User) *created[user] {
	callFrom(ctx).resource = u.ID
	return &created[user]{Location: "/v1/users/" + string(u.ID), ETag: etag(u.Version), Body: userView(u)}
}

// Credentials is credentials under a name huma sees when it is embedded.
type Credentials = credentials

type createUserInput struct {
	Body struct {
		Credentials
		SuperAdmin bool `json:"super_admin,omitempty" doc:"May do everything everywhere."`
	} `nameHint:"NewUser"`
}

func (a *API) createUser(ctx context.Context, in *createUserInput) (*created[user], error) {
	fresh, err := a.newUser(ctx, in.Body.Credentials)
	if err != nil {
		return nil, err
	}
	fresh.SuperAdmin = in.Body.SuperAdmin
	u, err := a.Store.CreateUser(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return createdUser(ctx, u), nil
}

type putUserInput struct {
	UserID platform.ID `path:"user_id" doc:"The user's id."`
	IfMatch
	Body struct {
		Name            *string    `json:"name,omitempty" doc:"A new name; super-admins only."`
		Password        *string    `json:"password,omitempty" maxLength:"1024" doc:"A new password; ends the user's other sessions."`
		CurrentPassword string     `json:"current_password,omitempty" maxLength:"1024" doc:"Needed to change one's own password."`
		SuperAdmin      *bool      `json:"super_admin,omitempty" doc:"Super-admins only."`
		ID              string     `json:"id,omitempty" readOnly:"true"`
		CreatedAt       *timestamp `json:"created_at,omitempty" readOnly:"true"`
		UpdatedAt       *timestamp `json:"updated_at,omitempty" readOnly:"true"`
	} `nameHint:"UserChange"`
}

// putUser changes what the body names; what it leaves out stays. Everyone may
// change their own password by giving the old one; the rest is for
// super-admins.
func (a *API) putUser(ctx context.Context, in *putUserInput) (*object[user], error) {
	c := callFrom(ctx)
	who := c.identity()
	c.resource = in.UserID
	own := who.UserID == in.UserID
	if !who.SuperAdmin && !own {
		return nil, forbidden("this takes a super-admin", "super-admin")
	}
	if err := unbounded(who); err != nil {
		return nil, err
	}
	current, err := a.Store.User(ctx, in.UserID)
	if err != nil {
		return nil, err
	}
	if !who.SuperAdmin && (in.Body.Name != nil && *in.Body.Name != current.Name || in.Body.SuperAdmin != nil && *in.Body.SuperAdmin != current.SuperAdmin) {
		return nil, forbidden("changing name or super_admin takes a super-admin; your own password you may change", "super-admin")
	}
	var hash string
	if in.Body.Password != nil {
		if own {
			if err := a.checkOwnPassword(ctx, current, in.Body.CurrentPassword); err != nil {
				return nil, err
			}
		}
		if err := platform.ValidatePassword(*in.Body.Password); err != nil {
			return nil, err
		}
		if hash, err = a.hashPassword(ctx, *in.Body.Password); err != nil {
			return nil, err
		}
	}
	u, err := update(in.IfMatch,
		func() (platform.User, int64, error) {
			u, err := a.Store.User(ctx, in.UserID)
			return u, u.Version, err
		},
		func(u platform.User, version int64) (platform.User, error) {
			if in.Body.Name != nil {
				u.Name = *in.Body.Name
			}
			if in.Body.SuperAdmin != nil {
				u.SuperAdmin = *in.Body.SuperAdmin
			}
			if hash != "" {
				u.PasswordHash = hash
			}
			if err := platform.ValidateUserName(u.Name); err != nil {
				return u, err
			}
			return a.Store.UpdateUser(ctx, u, version)
		})
	if err != nil {
		return nil, err
	}
	if hash != "" {
		if err := a.Store.DeleteTokensOf(ctx, u.ID, platform.TokenSession, who.TokenID); err != nil {
			return nil, err
		}
	}
	return &object[user]{ETag: etag(u.Version), Body: userView(u)}, nil
}

// checkOwnPassword is under the same limit as a login: a stolen session must
// not be a way to guess.
func (a *API) checkOwnPassword(ctx context.Context, u platform.User, password string) error {
	if password == "" {
		return platform.InvalidField("current_password", "required", "is required to change one's own password")
	}
	if err := a.names.charge(callFrom(ctx), "user/"+u.Name); err != nil {
		return err
	}
	ok, err := a.checkPassword(ctx, u.PasswordHash, password)
	if err == nil && !ok {
		err = platform.InvalidField("current_password", "wrong", "is not your password")
	}
	return err
}

type deleteUserInput struct {
	UserID platform.ID `path:"user_id" doc:"The user's id."`
}

func (a *API) deleteUser(ctx context.Context, in *deleteUserInput) (*nothing, error) {
	callFrom(ctx).resource = in.UserID
	return nil, a.Store.DeleteUser(ctx, in.UserID)
}
